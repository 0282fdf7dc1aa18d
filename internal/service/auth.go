package service

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// A Caller is who sent a request: a principal of a tenant.
type Caller struct{ Tenant, Principal string }

type principalKey struct{}

// Principal is who sent the request of ctx, "" where callers are not told apart.
func Principal(ctx context.Context) string {
	p, _ := ctx.Value(principalKey{}).(string)
	return p
}

// apiKeys are the callers of a file with one of them on each line, tenant:principal:SHA-256 of the key in hex. Empty lines and
// those that begin with # are skipped. A caller may have two lines, while one key follows another.
//
// A key is a long random text, so that its hash needs no salt and no stretching. The file is looked at for each request and
// read again when it has changed: a key whose line is gone is refused from then on. A file that cannot be read, or holds a
// wrong line, changes nothing and is logged: a slip of the pen locks nobody out.
type apiKeys struct {
	file string
	log  *slog.Logger

	mu     sync.Mutex
	seen   fileState
	hashes [][sha256.Size]byte
	caller []Caller
}

// A fileState changes with a file, also when another one is put in its place, as Kubernetes does with secrets.
type fileState struct {
	info os.FileInfo
	err  string
}

func (s fileState) same(o fileState) bool {
	if s.info == nil || o.info == nil {
		return s.info == nil && o.info == nil && s.err == o.err
	}
	return os.SameFile(s.info, o.info) && s.info.ModTime().Equal(o.info.ModTime()) && s.info.Size() == o.info.Size()
}

func lookAt(file string) fileState {
	info, err := os.Stat(file)
	if err != nil {
		return fileState{err: err.Error()}
	}
	return fileState{info: info}
}

// openKeys reads the file, which must be right the first time.
func openKeys(file string, log *slog.Logger) (*apiKeys, error) {
	k := &apiKeys{file: file, log: log}
	k.seen = lookAt(file)
	return k, k.read()
}

func (k *apiKeys) read() error {
	b, err := os.ReadFile(k.file)
	if err != nil {
		return fmt.Errorf("read the API keys: %w", err)
	}
	var hashes [][sha256.Size]byte
	var callers []Caller
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, ":")
		var hash [sha256.Size]byte
		if len(f) != 3 || f[0] == "" || f[1] == "" || len(f[2]) != 2*len(hash) {
			return fmt.Errorf("API keys %s: line %d is not tenant:principal:SHA-256 of the key in hex", k.file, n)
		}
		if _, err := hex.Decode(hash[:], []byte(f[2])); err != nil {
			return fmt.Errorf("API keys %s: line %d: the hash is not in hex", k.file, n)
		}
		hashes, callers = append(hashes, hash), append(callers, Caller{Tenant: f[0], Principal: f[1]})
	}
	k.hashes, k.caller = hashes, callers
	return nil
}

// find returns the caller of a key.
func (k *apiKeys) find(key string) (Caller, bool) {
	k.mu.Lock()
	if now := lookAt(k.file); !now.same(k.seen) {
		k.seen = now
		if err := k.read(); err != nil {
			k.log.Error("the API keys stay as they were", "error", err)
		} else {
			k.log.Info("API keys read", "keys", len(k.hashes))
		}
	}
	hashes, callers := k.hashes, k.caller
	k.mu.Unlock()

	hash, found := sha256.Sum256([]byte(key)), -1
	for i := range hashes { // all of them: how long it takes tells nothing
		if subtle.ConstantTimeCompare(hash[:], hashes[i][:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return Caller{}, false
	}
	return callers[found], true
}

// bearer is the key of a request: the one value of its one Authorization header.
func bearer(r *http.Request) (key string, ok bool) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return "", false
	}
	scheme, key, _ := strings.Cut(values[0], " ")
	key = strings.TrimSpace(key)
	return key, strings.EqualFold(scheme, "Bearer") && key != ""
}

// inURL says whether a request carries something in its query that may be a key.
func inURL(r *http.Request) bool {
	for name := range r.URL.Query() {
		switch strings.ToLower(name) {
		case "access_token", "api_key", "apikey", "authorization", "key", "token":
			return true
		}
	}
	return false
}

// documented are the paths that tell about the API and nothing of any tenant.
func documented(path string) bool {
	return path == "/docs" || strings.HasPrefix(path, "/docs/") || strings.HasPrefix(path, "/openapi")
}

// authenticate hands on the requests of callers whose key is known, with their tenant and principal in the context.
func authenticate(keys *apiKeys, reg prometheus.Registerer, next http.Handler) http.Handler {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "http", Name: "unauthenticated_total",
		Help: "Requests refused because of their API key, or for want of one."}, []string{"reason"})
	reg.MustRegister(refused)
	refuse := func(w http.ResponseWriter, p *problem) {
		refused.WithLabelValues(strings.TrimPrefix(p.Type, problemPrefix)).Inc()
		if p.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="oncebox"`)
		}
		p.write(w)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if documented(r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		if inURL(r) {
			refuse(w, newProblem(http.StatusBadRequest, "key-in-url",
				"A key in a URL is written into logs on its way. Send it as Authorization: Bearer, and have this one replaced."))
			return
		}
		key, ok := bearer(r)
		if !ok {
			refuse(w, newProblem(http.StatusUnauthorized, "api-key-missing", "This request needs an API key: Authorization: Bearer, once."))
			return
		}
		caller, ok := keys.find(key)
		if !ok {
			refuse(w, newProblem(http.StatusUnauthorized, "api-key-unknown", "This API key is not known, or not any more."))
			return
		}
		ctx := context.WithValue(WithTenant(r.Context(), caller.Tenant), principalKey{}, caller.Principal)
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// readToken is the one line of a file, for whoever must know it.
func readToken(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	const least = 16
	if len(token) < least {
		return "", fmt.Errorf("the token in %s has %d characters, below %d", file, len(token), least)
	}
	return token, nil
}

// writesNeed lets reads pass, and everything else only with the token: with none, no write at all. A whole dead letter is read
// with the token too: its payload may be a person's data.
func writesNeed(token string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		if !reads || strings.HasPrefix(r.URL.Path, "/dead-letters/") {
			key, ok := bearer(r)
			got := sha256.Sum256([]byte(key))
			switch {
			case token == "":
				newProblem(http.StatusForbidden, "no-admin-token", "This service has no --admin-token-file, and so takes no writes here.").write(w)
				return
			case !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1:
				w.Header().Set("WWW-Authenticate", `Bearer realm="oncebox admin"`)
				newProblem(http.StatusUnauthorized, "admin-token", "This needs the admin token: Authorization: Bearer.").write(w)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
