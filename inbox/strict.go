package inbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
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
	dec := json.NewDecoder(bytes.NewReader(data))
	var (
		objects []map[string]bool // those that are open; nil stands for an array
		name    bool              // the next token is a name
	)
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch delim, _ := token.(json.Delim); {
		case delim == '{':
			objects, name = append(objects, map[string]bool{}), true
			continue
		case delim == '[':
			objects, name = append(objects, nil), false
			continue
		case delim != 0:
			objects = objects[:len(objects)-1]
		case name:
			folded := strings.ToLower(token.(string))
			names := objects[len(objects)-1]
			if names[folded] {
				return fmt.Errorf("the name %.64q comes twice", token)
			}
			names[folded], name = true, false
			continue
		}
		name = len(objects) > 0 && objects[len(objects)-1] != nil
	}
}
