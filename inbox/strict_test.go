package inbox_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/oncebox/oncebox"
	"github.com/oncebox/oncebox/inbox"
)

type sale struct {
	Item  string          `json:"item"`
	Kind  string          `json:"kind"`
	Extra json.RawMessage `json:"extra"`
}

// What two readers may read in two ways is refused: encoding/json takes the last of two names that it holds for the same.
func TestANameThatComesTwiceIsRefused(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"item":"a","kind":"b"}`:                           true,
		`{"item":"a","item":"b"}`:                           false,
		`{"item":"a", "ITEM" : "b"}`:                        false,
		`{"item":"a","\u0069tem":"b"}`:                      false,
		"{\"kind\":\"a\",\"\u212aind\":\"b\"}":              false, // the Kelvin sign
		"{\"extra\":{\"s\":1,\"\u017f\":2}}":                false, // the long s
		`{"extra":{"item":{"item":1}},"item":"a"}`:          true,
		`{"extra":[{"a":1},{"a":2},["a","a"]]}`:             true,
		`{"extra":[{"b":{"a":1,"a":2}}]}`:                   false,
		`{"item":"item","kind":"\"item\":"}`:                true,
		`{"item":"a\\","kind":"b"}`:                         true,
		`{"item":"a\\","item":"b"}`:                         false,
		"{\"item\"\n:\t\"a\",\"extra\":[\"item\" , \"x\"]}": true,
		"{\"sinir\":1,\"s\u0131n\u0131r\":2}":               true, // the i without a dot is another one
		`{"":1,"":2}`:                                       false,
	} {
		_, err := inbox.Read[sale](oncebox.Event{Type: "sold", Data: []byte(text)})
		if (err == nil) != ok {
			t.Errorf("%s: %v, want it read: %t", text, err, ok)
		}
	}
}

// FuzzRead holds the search for names to encoding/json's own reading of the same text, token by token.
func FuzzRead(f *testing.F) {
	for _, text := range []string{`{"item":"a","item":"b"}`, `{"extra":[{"a":1,"b":[{}]}]}`, `"\\\""`, `{"a\"":{"a\"":""}}`, "[\"\u212a\"]"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := utf8.Valid(b) && json.Valid(b) && !namesTwice(json.NewDecoder(bytes.NewReader(b)))
		if _, err := inbox.Read[json.RawMessage](oncebox.Event{Data: b}); (err == nil) != want {
			t.Errorf("%q: %v, want it read: %t", b, err, want)
		}
	})
}

// namesTwice says whether an object of the next value names something twice.
func namesTwice(d *json.Decoder) bool {
	token, err := d.Token()
	if err != nil {
		return false
	}
	twice, names := false, map[string]bool{}
	for open, _ := token.(json.Delim); (open == '{' || open == '[') && d.More(); {
		if open == '{' {
			name, _ := d.Token()
			for other := range names {
				twice = twice || strings.EqualFold(other, name.(string))
			}
			names[name.(string)] = true
		}
		twice = namesTwice(d) || twice
	}
	if _, is := token.(json.Delim); is {
		_, _ = d.Token()
	}
	return twice
}
