package idempotency

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

var errNotJSON = errors.New("the body is not JSON in UTF-8")

// json adds a JSON value in a form that is the same for equal values and for no others. RFC 8785 is not that form: it takes
// numbers through doubles, where 9007199254740993 is 9007199254740992.
func (f fields) json(body []byte) error {
	if !utf8.Valid(body) || !json.Valid(body) {
		return errNotJSON
	}
	_, err := f.value(skipSpace(body))
	return err
}

// value adds the value that b begins with and returns what follows it. b is valid JSON.
func (f fields) value(b []byte) (rest []byte, err error) {
	switch b[0] {
	case '{':
		return f.object(b)
	case '[':
		return f.array(b)
	case '"':
		s, rest, err := jsonString(b)
		if err != nil {
			return nil, err
		}
		f.add("s")
		f.add(s)
		return rest, nil
	default: // a number, true, false or null: no two literals are the same value here
		n := bytes.IndexAny(b, ",]} \t\r\n")
		if n < 0 {
			n = len(b)
		}
		f.add("l")
		f.add(string(b[:n]))
		return b[n:], nil
	}
}

func (f fields) object(b []byte) (rest []byte, err error) {
	values := map[string]Fingerprint{}
	b = skipSpace(b[1:])
	for b[0] != '}' {
		name, rest, err := jsonString(b)
		if err != nil {
			return nil, err
		}
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("the body has the name %.64q twice in one object", name)
		}
		member := newFields()
		if rest, err = member.value(skipSpace(skipSpace(rest)[1:])); err != nil { // past the colon
			return nil, err
		}
		values[name] = Fingerprint(member.Sum(nil))
		b = skipComma(rest)
	}
	f.add("o")
	f.count(len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		f.add(name)
		v := values[name]
		f.Write(v[:])
	}
	return b[1:], nil
}

func (f fields) array(b []byte) (rest []byte, err error) {
	f.add("a")
	b = skipSpace(b[1:])
	for b[0] != ']' {
		f.add("i")
		if b, err = f.value(b); err != nil {
			return nil, err
		}
		b = skipComma(b)
	}
	f.add("e")
	return b[1:], nil
}

func skipSpace(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// skipComma goes to the next element, or to the end of the list.
func skipComma(b []byte) []byte {
	b = skipSpace(b)
	if b[0] == ',' {
		b = skipSpace(b[1:])
	}
	return b
}

// jsonString unescapes the string that b begins with. Half a surrogate pair is refused: encoding/json makes U+FFFD of each, and
// different bodies the same.
func jsonString(b []byte) (s string, rest []byte, err error) {
	out := make([]byte, 0, 32)
	for i := 1; ; {
		switch c := b[i]; {
		case c == '"':
			return string(out), b[i+1:], nil
		case c != '\\':
			out = append(out, c)
			i++
		case b[i+1] != 'u':
			out = append(out, unescaped[b[i+1]])
			i += 2
		default:
			r := hex4(b[i+2:])
			i += 6
			if utf16.IsSurrogate(r) {
				if b[i] != '\\' || b[i+1] != 'u' {
					return "", nil, errNotJSON
				}
				if r = utf16.DecodeRune(r, hex4(b[i+2:])); r == utf8.RuneError {
					return "", nil, errNotJSON
				}
				i += 6
			}
			out = utf8.AppendRune(out, r)
		}
	}
}

var unescaped = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func hex4(b []byte) rune {
	n, err := strconv.ParseUint(string(b[:4]), 16, 16)
	if err != nil {
		return utf8.RuneError // json.Valid has seen four hex digits
	}
	return rune(n)
}
