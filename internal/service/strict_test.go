package service

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// checkJSON alone: what it lets pass, encoding/json reads in the one way that is left.
func TestJSONIsReadInOneWay(t *testing.T) {
	t.Parallel()
	deepest := strings.Repeat(`[{"a":`, maxDepth/2) + "1" + strings.Repeat("}]", maxDepth/2)
	for _, text := range []string{
		"1", ` "a" `, "null", "true", "-1.5e3", "[]", "{}", "[[],{}]", `{"a":1,"b":1}`, `{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}`, `{"a":"b","b":"a"}`,
		`{"a":[],"b":[1,"a",["a"]],"c":"a"}`, `"\ud83d\ude00"`, `"\\ud83d"`, `"\\\\"`, `"\u0041\""`, "\"\U0001F600\uFFFD\"", deepest,
	} {
		if err := checkJSON([]byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for text, want := range map[string]error{
		"": errSyntax, " ": errSyntax, "[": errSyntax, "{": errSyntax, `{"a"`: errSyntax, `{"a":`: errSyntax, `{"a":1`: errSyntax, "]": errSyntax,
		"[}": errSyntax, "{]": errSyntax, "1 2": errSyntax, "{}{}": errSyntax, "[] x": errSyntax, `{"a":1,}`: errSyntax, "{1:1}": errSyntax,
		"tru": errSyntax, "01": errSyntax, "\"\n\"": errSyntax, "1\x00": errSyntax, "\xef\xbb\xbf1": errSyntax,
		`{"a":1,"a":1}`: errTwice, `{"a":1,"\u0061":1}`: errTwice, `[{"b":{"a":1,"c":[],"a":1}}]`: errTwice, `{"a":"x","b":{},"a":2}`: errTwice, `{"":1,"":1}`: errTwice,
		"[null]": errNull, `{"a":null}`: errNull, `{"a":[1,{"b":null}]}`: errNull,
		"[" + deepest + "]": errDepth, strings.Repeat("[", 1_000_000): errDepth,
		"\"\xff\"": errUTF8, `"\ud800"`: errUTF8, `"\udc00"`: errUTF8, `"\ud800\ud800"`: errUTF8, `"\ud83d\\ude00"`: errUTF8, `"\\\ud800"`: errUTF8, `"\ud800`: errUTF8,
	} {
		if err := checkJSON([]byte(text)); !errors.Is(err, want) {
			t.Errorf("%.80q: %v, want %v", text, err, want)
		}
	}
}

func FuzzCheckJSON(f *testing.F) {
	for _, seed := range []string{`{"a":[1,"b",null],"\ud83d\ude00":{}}`, `{"a":1,"a":2}`, "[[[", "\xff", `"\ud800"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkJSON(b) == nil && !json.Valid(b) {
			t.Errorf("%q passes and is no JSON", b)
		}
	})
}
