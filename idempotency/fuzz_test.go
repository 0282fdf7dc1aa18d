package idempotency

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParseKey holds that a key is 1 to 255 visible ASCII characters, and the same one when it comes back as it is echoed.
func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"", `""`, "abc", `"abc"`, `"abc";p=1`, `"a\"b\\c"`, `"a`, `"a" , "b"`, "a b", "ä", `"ä"`, strings.Repeat("k", 256), "\"\x00\""} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, header string, strict bool) {
		key, err := parseKey([]string{header}, strict)
		if err != nil {
			if key != "" || !errors.Is(err, errKeyInvalid) {
				t.Errorf("%q is %q, %v", header, key, err)
			}
			return
		}
		if len(key) < 1 || len(key) > maxKey || strings.ContainsFunc(key, func(r rune) bool { return r < '!' || r > '~' }) {
			t.Errorf("%q is the key %q", header, key)
		}
		if again, err := parseKey([]string{quoteKey(key)}, true); err != nil || again != key {
			t.Errorf("%q is the key %q, which comes back as %q, %v", header, key, again, err)
		}
		if strict && header[0] != '"' {
			t.Errorf("strict takes %q", header)
		}
	})
}

// FuzzFingerprint holds that two bodies have one fingerprint if, and only if, they are the same: by their bytes, and as JSON by
// what encoding/json reads of them.
func FuzzFingerprint(f *testing.F) {
	for _, s := range []string{
		`{"a":1,"b":2}`, `{"b":2,"a":1}`, `{ "a" : 1 , "b" : 2 }`, `{"a":1.0,"b":2}`, `{"a":1,"a":1}`, `{}`, `[]`, `[[]]`, `[{}]`, `""`, `null`, `0`, `-0`,
		`"\ud800"`, `"\ud801"`, `"\ufffd"`, `"😀"`, "\"\U0001F600\"", `"a"`, `"a"`, `"\/"`, `"/"`, `9007199254740992`, `9007199254740993`, `1e2`, `100`,
		`{"a":{"b":[1,"x",null,true]}}`, `{"a":{"b":[1,"x",null,false]}}`, `["a","b"]`, `["ab"]`, `["a",["b"]]`, `{"a":"b"}`, ` {"a":"b"} `, `{`, "\xff", `"\\ud800"`,
	} {
		f.Add(s, s)
		f.Add(s, `{"a":1}`)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		raw, asJSON := sameBody(t, a, b, RawBody), sameBody(t, a, b, JSONBody)
		if raw == nil || *raw != (a == b) {
			t.Errorf("%q and %q are the same raw: %v", a, b, raw)
		}
		va, vb := decode(a), decode(b)
		if asJSON == nil {
			return // one is refused
		}
		switch {
		case (a == "") != (b == ""), a == "":
			if *asJSON != (a == b) {
				t.Errorf("%q and %q are the same JSON: %t", a, b, *asJSON)
			}
		case va == nil || vb == nil:
			t.Errorf("%q or %q is no JSON and was taken", a, b)
		case *asJSON != reflect.DeepEqual(va, vb):
			t.Errorf("%q and %q are the same JSON: %t", a, b, *asJSON)
		}
	})
}

// sameBody compares the fingerprints of two bodies; nil when one is refused.
func sameBody(t *testing.T, a, b string, mode BodyMode) *bool {
	t.Helper()
	var fs [2]Fingerprint
	for i, body := range []string{a, b} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Content-Type", "application/json")
		var err error
		if fs[i], err = fingerprint(r, []byte(body), mode, ""); err != nil {
			if valid(body) && !hasTwice(body) {
				t.Errorf("%q is refused: %v", body, err)
			}
			return nil
		}
		if mode == JSONBody && body != "" && (!valid(body) || hasTwice(body)) {
			t.Errorf("%q is taken", body)
		}
	}
	same := fs[0].Equal(fs[1])
	return &same
}

// decode is a JSON value with its numbers as they were written, and nil of what is none.
func decode(s string) any {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var v any
	if !json.Valid([]byte(s)) || d.Decode(&v) != nil {
		return nil
	}
	return &v
}

var (
	pair = regexp.MustCompile(`(?i)\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}`)
	half = regexp.MustCompile(`(?i)\\ud[89a-f]`)
)

// valid says whether s is JSON of whole characters.
func valid(s string) bool {
	escapes := strings.ReplaceAll(s, `\\`, "")
	return utf8.ValidString(s) && json.Valid([]byte(s)) && !half.MatchString(pair.ReplaceAllString(escapes, ""))
}

// hasTwice says whether an object of s has a name twice: decoded, such a one is shorter than its tokens tell.
func hasTwice(s string) bool {
	d := json.NewDecoder(strings.NewReader(s))
	type level struct {
		names map[string]bool // nil: an array
		name  bool            // a name comes next
	}
	var levels []level
	ended := func() {
		if n := len(levels); n > 0 && levels[n-1].names != nil {
			levels[n-1].name = true
		}
	}
	for {
		token, err := d.Token()
		if err != nil {
			return false
		}
		switch token {
		case json.Delim('{'):
			levels = append(levels, level{map[string]bool{}, true})
			continue
		case json.Delim('['):
			levels = append(levels, level{})
			continue
		case json.Delim('}'), json.Delim(']'):
			levels = levels[:len(levels)-1]
			ended()
			continue
		}
		if n := len(levels); n > 0 && levels[n-1].name {
			name := token.(string)
			if levels[n-1].names[name] {
				return true
			}
			levels[n-1].names[name], levels[n-1].name = true, false
			continue
		}
		ended()
	}
}
