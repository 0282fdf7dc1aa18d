package service

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
)

func keyLine(tenant, principal, key string) string {
	return fmt.Sprintf("%s:%s:%x\n", tenant, principal, sha256.Sum256([]byte(key)))
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	next := name + ".next"
	must(t, os.WriteFile(next, []byte(text), 0o600))
	must(t, os.Rename(next, name))
}

// whoami is an API that answers who the caller is, behind the guard that o asks for.
func whoami(t *testing.T, access Access) *httptest.Server {
	t.Helper()
	log, reg := slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry()
	api, err := Options{Access: access}.guard("test", NewAPI("test", "1", log, reg, func(api huma.API) {
		huma.Get(api, "/v1/me", func(ctx context.Context, _ *struct{}) (*struct{ Body string }, error) {
			return &struct{ Body string }{Tenant(ctx) + "/" + Principal(ctx)}, nil
		})
	}), log, reg)
	must(t, err)
	server := httptest.NewServer(bounded(api))
	t.Cleanup(server.Close)
	return server
}

// ask sends a request and returns its status, its headers and, of a problem, the end of its type, else its body.
func ask(t *testing.T, method, url string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	must(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	must(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	var p struct{ Type string }
	if res.Header.Get("Content-Type") == "application/problem+json" {
		must(t, json.Unmarshal(b, &p))
		return res.StatusCode, res.Header, strings.TrimPrefix(p.Type, problemPrefix)
	}
	return res.StatusCode, res.Header, strings.TrimSpace(string(b))
}

func TestAKeySaysWhoCalls(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, "# ours\n\n"+keyLine("acme", "shop", "key-of-acme")+keyLine("bolt", "till-1", "key-of-bolt"))
	server := whoami(t, Access{Auth: "keys", APIKeysFile: file})
	me := server.URL + "/v1/me"
	for name, c := range map[string]struct {
		url    string
		header []string
		status int
		answer string
	}{
		"a key":               {me, []string{"Authorization", "Bearer key-of-acme"}, 200, `"acme/shop"`},
		"another":             {me, []string{"Authorization", "bearer  key-of-bolt"}, 200, `"bolt/till-1"`},
		"none":                {me, nil, 401, "api-key-missing"},
		"an empty one":        {me, []string{"Authorization", "Bearer "}, 401, "api-key-missing"},
		"no scheme":           {me, []string{"Authorization", "key-of-acme"}, 401, "api-key-missing"},
		"another scheme":      {me, []string{"Authorization", "Basic key-of-acme"}, 401, "api-key-missing"},
		"two":                 {me, []string{"Authorization", "Bearer key-of-acme", "Authorization", "Bearer key-of-bolt"}, 401, "api-key-missing"},
		"a wrong one":         {me, []string{"Authorization", "Bearer key-of-acm"}, 401, "api-key-unknown"},
		"a hash for a key":    {me, []string{"Authorization", fmt.Sprintf("Bearer %x", sha256.Sum256([]byte("key-of-acme")))}, 401, "api-key-unknown"},
		"in the query":        {me + "?api_key=key-of-acme", nil, 400, "key-in-url"},
		"in the query too":    {me + "?ACCESS_TOKEN=key-of-acme", []string{"Authorization", "Bearer key-of-acme"}, 400, "key-in-url"},
		"a tenant of choice":  {me, []string{"Authorization", "Bearer key-of-acme", "X-Tenant", "bolt", "Tenant-Id", "bolt"}, 200, `"acme/shop"`},
		"nowhere, without":    {server.URL + "/nowhere", nil, 401, "api-key-missing"},
		"admin's way, with":   {server.URL + "/metrics", []string{"Authorization", "Bearer key-of-acme"}, 404, "not-found"},
		"ready's way, with":   {server.URL + "/readyz", []string{"Authorization", "Bearer key-of-acme"}, 404, "not-found"},
		"the way round, docs": {server.URL + "/docs/../v1/me", nil, 404, "not-found"},
		"the way round, case": {server.URL + "/V1/me", nil, 401, "api-key-missing"},
		"the way round, hex":  {server.URL + "/%761/me", nil, 401, "api-key-missing"},
		"the description":     {server.URL + "/openapi.json", nil, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, header, answer := ask(t, "GET", c.url, c.header...)
			if status != c.status || c.answer != "" && answer != c.answer {
				t.Errorf("got %d %s, want %d %s", status, answer, c.status, c.answer)
			}
			if (status == http.StatusUnauthorized) != strings.HasPrefix(header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("WWW-Authenticate is %q with %d", header.Get("WWW-Authenticate"), status)
			}
		})
	}
}

func TestARevokedKeyIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	acme, bolt := keyLine("acme", "shop", "key-of-acme"), keyLine("bolt", "shop", "key-of-bolt")
	writeFile(t, file, acme+bolt)
	me := whoami(t, Access{Auth: "keys", APIKeysFile: file}).URL + "/v1/me"
	want := func(when, key string, want int) {
		t.Helper()
		if status, _, answer := ask(t, "GET", me, "Authorization", "Bearer "+key); status != want {
			t.Errorf("%s: %s gets %d %s, want %d", when, key, status, answer, want)
		}
	}
	want("at first", "key-of-acme", 200)
	writeFile(t, file, bolt)
	want("after its line went", "key-of-acme", 401)
	want("after another's line went", "key-of-bolt", 200)
	writeFile(t, file, bolt+"acme:shop:typo\n")
	want("with a wrong line", "key-of-bolt", 200)
	must(t, os.Remove(file))
	want("without the file", "key-of-bolt", 200)
	writeFile(t, file, acme)
	want("when it is there again", "key-of-acme", 200)
	want("when it is there again without it", "key-of-bolt", 401)
}

func TestAWrongFileOfKeysStopsTheStart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "keys")
	for name, c := range map[string]struct{ text, want string }{
		"no hash":        {"acme:shop\n", "line 1"},
		"a raw key":      {"# x\nacme:shop:key-of-acme\n", "line 2"},
		"not in hex":     {"acme:shop:" + strings.Repeat("z", 64) + "\n", "line 1"},
		"no tenant":      {":shop:" + strings.Repeat("a", 64) + "\n", "line 1"},
		"no principal":   {"acme::" + strings.Repeat("a", 64) + "\n", "line 1"},
		"too many parts": {"acme:shop:x:" + strings.Repeat("a", 64) + "\n", "line 1"},
	} {
		writeFile(t, file, c.text)
		_, err := openKeys(file, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "key-of-acme") {
			t.Errorf("%s: got %v, want an error that names %s and nothing of the key", name, err, c.want)
		}
	}
	if _, err := openKeys(filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no file was taken for no keys")
	}
}

func TestWithoutKeysEverybodyIsTheDefaultTenant(t *testing.T) {
	t.Parallel()
	me := whoami(t, Access{Auth: "off"}).URL + "/v1/me"
	if status, _, answer := ask(t, "GET", me); status != 200 || answer != `"default/"` {
		t.Errorf("got %d %s", status, answer)
	}
}

func TestAdminWritesNeedTheToken(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, "0123456789abcdef\n")
	routes := http.NewServeMux()
	routes.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("done")) })
	serve := func(access Access) string {
		h, err := Options{Access: access}.guardAdmin("test", routes)
		must(t, err)
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return s.URL
	}
	with, without := serve(Access{AdminTokenFile: file}), serve(Access{})
	for _, c := range []struct {
		name, method, url string
		header            []string
		status            int
	}{
		{"a read", "GET", with, nil, 200},
		{"a read where no token is", "GET", without, nil, 200},
		{"a write", "POST", with, []string{"Authorization", "Bearer 0123456789abcdef"}, 200},
		{"a write without it", "POST", with, nil, 401},
		{"a write with another", "DELETE", with, []string{"Authorization", "Bearer 0123456789abcdeg"}, 401},
		{"a write with none", "PUT", with, []string{"Authorization", "Bearer "}, 401},
		{"a write where no token is", "POST", without, []string{"Authorization", "Bearer "}, 403},
		{"an odd method", "PURGE", without, nil, 403},
	} {
		if status, _, answer := ask(t, c.method, c.url, c.header...); status != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, status, answer, c.status)
		}
	}
	writeFile(t, file, "short\n")
	if _, err := readToken(file); err == nil {
		t.Error("a token of five characters was taken")
	}
}
