package inbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// unmarshal is json.Unmarshal without what it lets pass and two readers may read in two ways: text that is no UTF-8, and a name
// that comes twice in an object, also in another case.
func unmarshal(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errors.New("is no UTF-8")
	}
	if err := json.Unmarshal(data, v); err != nil {
		return err
	}
	if name, is := repeated(data); is {
		return fmt.Errorf("the name %.64q comes twice", name)
	}
	return nil
}

// repeated finds a name that comes twice in one object of data, which is valid JSON.
func repeated(data []byte) (name string, is bool) {
	var open []map[string]bool // the names of each object that is open; nil for an array
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{':
			open = append(open, make(map[string]bool, 8))
		case '[':
			open = append(open, nil)
		case '}', ']':
			open = open[:len(open)-1]
		case '"':
			begin := i
			for i++; data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
			if after := bytes.TrimLeft(data[i+1:], " \t\r\n"); len(after) == 0 || after[0] != ':' {
				continue // a value
			}
			if err := json.Unmarshal(data[begin:i+1], &name); err != nil { // never: it is a part of what was read before
				return name, true
			}
			names, folded := open[len(open)-1], fold(name)
			if names[folded] {
				return name, true
			}
			names[folded] = true
		}
	}
	return "", false
}

// fold makes one of the spellings that encoding/json takes for the same name, as of K, k and the Kelvin sign.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r { // the least of those that are the same
				return next
			}
			r = next
		}
	}, name)
}
