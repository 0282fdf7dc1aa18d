// Package contract holds what programs say to the documents that describe it: the events of a service to its AsyncAPI document, the
// answers of an API to its OpenAPI document. It is for tests.
//
// It knows the part of JSON Schema that our documents use. A keyword that it does not know is an error, never passed over.
package contract

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.yaml.in/yaml/v3"
)

// A Document is a JSON or YAML document whose parts refer to each other by $ref.
type Document struct{ root map[string]any }

// Parse reads a document in YAML, or in JSON, which is YAML.
func Parse(text []byte) (Document, error) {
	var d Document
	if err := yaml.Unmarshal(text, &d.root); err != nil {
		return Document{}, fmt.Errorf("parse the document: %w", err)
	}
	return d, nil
}

// At is what stands at a path of names, with each $ref on the way followed. It is nil if nothing does.
func (d Document) At(names ...string) any {
	var at any = d.root
	for _, name := range names {
		m, _ := d.follow(at).(map[string]any)
		at = m[name]
	}
	return d.follow(at)
}

// Map is At where a map stands; nil otherwise.
func (d Document) Map(names ...string) map[string]any {
	m, _ := d.At(names...).(map[string]any)
	return m
}

func (d Document) follow(at any) any {
	m, _ := at.(map[string]any)
	ref, ok := m["$ref"].(string)
	if !ok {
		return at
	}
	return d.At(pointer(ref)...)
}

// pointer are the names in a local reference.
func pointer(ref string) []string {
	names := strings.Split(strings.TrimPrefix(ref, "#/"), "/")
	for i, n := range names {
		names[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(n)
	}
	return names
}

// Broken are the references that lead nowhere.
func (d Document) Broken() (refs []string) {
	var walk func(any)
	walk = func(at any) {
		switch v := at.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok && d.At(pointer(ref)...) == nil {
				refs = append(refs, ref)
			}
			for _, name := range slices.Sorted(maps.Keys(v)) {
				walk(v[name])
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(d.root)
	return refs
}

// Check says what in a JSON text is not as a schema wants it.
func (d Document) Check(schema any, text []byte) []string {
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		return []string{"no JSON: " + err.Error()}
	}
	return d.check("", schema, value)
}

// described are keywords that explain and demand nothing.
var described = []string{"description", "title", "examples", "default", "$schema", "$id", "readOnly"}

func (d Document) check(at string, schema, value any) (wrong []string) {
	s, ok := d.follow(schema).(map[string]any)
	if !ok {
		return []string{at + ": no schema"}
	}
	complain := func(format string, args ...any) { wrong = append(wrong, at+": "+fmt.Sprintf(format, args...)) }
	for _, keyword := range slices.Sorted(maps.Keys(s)) {
		rule := s[keyword]
		switch keyword {
		case "type":
			if !hasType(rule, value) {
				complain("%v is not of type %v", value, rule)
			}
		case "enum":
			if !slices.ContainsFunc(rule.([]any), func(e any) bool { return same(e, value) }) {
				complain("%v is none of %v", value, rule)
			}
		case "const":
			if !same(rule, value) {
				complain("%v is not %v", value, rule)
			}
		case "allOf":
			for _, part := range rule.([]any) {
				wrong = append(wrong, d.check(at, part, value)...)
			}
		case "properties":
			members, _ := value.(map[string]any)
			for name, part := range rule.(map[string]any) {
				if v, ok := members[name]; ok {
					wrong = append(wrong, d.check(at+"."+name, part, v)...)
				}
			}
		case "additionalProperties":
			known, _ := s["properties"].(map[string]any)
			for name := range asMap(value) {
				if _, ok := known[name]; !ok && rule == false {
					complain("%s is not known", name)
				}
			}
		case "required":
			for _, name := range rule.([]any) {
				if _, ok := asMap(value)[name.(string)]; !ok {
					complain("%s is missing", name)
				}
			}
		case "items":
			list, _ := value.([]any)
			for i, v := range list {
				wrong = append(wrong, d.check(fmt.Sprintf("%s[%d]", at, i), rule, v)...)
			}
		case "format", "pattern", "minLength", "maxLength":
			if text, ok := value.(string); ok && !textIs(keyword, rule, text) {
				complain("%.80q is not of %s %v", text, keyword, rule)
			}
		case "minimum", "maximum":
			if n, ok := value.(float64); ok && (keyword == "minimum" && n < number(rule) || keyword == "maximum" && n > number(rule)) {
				complain("%v is beyond the %s %v", n, keyword, rule)
			}
		default:
			if !slices.Contains(described, keyword) {
				complain("the schema has the keyword %s, which this package does not know", keyword)
			}
		}
	}
	return wrong
}

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// number makes one kind of number of YAML's and JSON's.
func number(v any) float64 {
	switch n := v.(type) {
	case int:
		return float64(n)
	case float64:
		return n
	}
	return math.NaN()
}

func same(a, b any) bool {
	if n := number(a); !math.IsNaN(n) {
		return n == number(b)
	}
	return reflect.DeepEqual(a, b)
}

func hasType(want, value any) bool {
	if list, ok := want.([]any); ok {
		return slices.ContainsFunc(list, func(t any) bool { return hasType(t, value) })
	}
	switch v := value.(type) {
	case string:
		return want == "string"
	case float64:
		return want == "number" || want == "integer" && v == math.Trunc(v)
	case bool:
		return want == "boolean"
	case map[string]any:
		return want == "object"
	case []any:
		return want == "array"
	}
	return want == "null"
}

func textIs(keyword string, rule any, text string) bool {
	switch keyword {
	case "minLength":
		return float64(utf8.RuneCountInString(text)) >= number(rule)
	case "maxLength":
		return float64(utf8.RuneCountInString(text)) <= number(rule)
	case "pattern":
		return regexp.MustCompile(rule.(string)).MatchString(text)
	}
	var err error
	switch rule {
	case "uuid":
		err = uuid.Validate(text)
	case "date-time":
		_, err = time.Parse(time.RFC3339Nano, text)
	case "uri":
		_, err = url.Parse(text)
	default:
		return false
	}
	return err == nil
}
