package idempotency

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// A BodyMode says when two bodies are the same request.
type BodyMode int

// RawBody compares bytes. JSONBody compares JSON values: the order of names and the space between them do not count, strings are
// compared unescaped, numbers by their literals (1.0 is not 1, and no digit is lost). It refuses what is no JSON, and an object
// that has a name twice. Bodies of other media types are compared by bytes.
const (
	RawBody BodyMode = iota
	JSONBody
)

// A Fingerprint is a SHA-256 over what makes a request the same as another.
type Fingerprint [sha256.Size]byte

// Equal compares in constant time: a client must not learn another's request by how long a refusal takes.
func (f Fingerprint) Equal(g Fingerprint) bool { return subtle.ConstantTimeCompare(f[:], g[:]) == 1 }

// fingerprintVersion changes when the fields do: old records then answer 422, never with another request's answer.
const fingerprintVersion = "1"

// fingerprint hashes the request's method, path, query, media type, encoding, preconditions and body, and who sent it. What a
// retry may change is not in it: Authorization, Date, Host, User-Agent, traceparent.
func fingerprint(r *http.Request, body []byte, mode BodyMode, principal string) (Fingerprint, error) {
	f := newFields()
	f.add(fingerprintVersion)
	f.add(principal)
	f.add(r.Method)
	f.add(r.URL.EscapedPath())
	f.query(r.URL.RawQuery)
	media := mediaType(r.Header.Get("Content-Type"))
	f.add(media)
	for _, name := range []string{"Content-Encoding", "If-Match", "If-None-Match"} {
		f.list(r.Header.Values(name))
	}
	if mode == JSONBody && len(body) > 0 && isJSON(media) && r.Header.Get("Content-Encoding") == "" {
		f.add("json")
		if err := f.json(body); err != nil {
			return Fingerprint{}, err
		}
	} else {
		f.add("raw")
		f.add(string(body))
	}
	return Fingerprint(f.Sum(nil)), nil
}

// mediaType is the type and subtype of a Content-Type.
func mediaType(contentType string) string {
	media, _, err := mime.ParseMediaType(contentType)
	if media == "" && err != nil {
		media = contentType
	}
	return media
}

func isJSON(media string) bool {
	return media == "application/json" || strings.HasSuffix(media, "+json")
}

// fields hashes strings with their lengths, so that no two lists of them are the same bytes.
type fields struct{ hash.Hash }

func (f fields) count(n int) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	f.Write(b[:])
}

func (f fields) add(s string) {
	f.count(len(s))
	f.Write([]byte(s))
}

func (f fields) list(all []string) {
	f.count(len(all))
	for _, s := range all {
		f.add(s)
	}
}

// query adds parameters by name, a name's values in their order.
func (f fields) query(raw string) {
	q, err := url.ParseQuery(raw)
	if err != nil { // ParseQuery drops what it cannot read
		f.add("unparsed")
		f.add(raw)
		return
	}
	names := make([]string, 0, len(q))
	for name := range q {
		names = append(names, name)
	}
	slices.Sort(names)
	f.count(len(names))
	for _, name := range names {
		f.add(name)
		f.list(q[name])
	}
}

func newFields() fields { return fields{sha256.New()} }
