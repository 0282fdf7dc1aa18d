package contract

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

const schemas = `
good:
  type: object
  required: [id, n]
  additionalProperties: false
  properties:
    id: {type: string, format: uuid}
    n: {type: integer, minimum: 1, maximum: 9}
    at: {type: string, format: date-time}
    code: {type: string, pattern: '^[A-Z]+$', minLength: 2, maxLength: 3}
    kind: {type: string, enum: [a, b]}
    one: {const: 1}
    list: {type: [array, 'null'], items: {$ref: '#/item'}}
    both: {allOf: [{type: string}, {minLength: 2}]}
item: {type: boolean}
strange: {type: string, contentEncoding: base64}
unformed: {type: string, format: shoe-size}
broken: {$ref: '#/nowhere'}
`

func TestEachRuleOfASchemaIsHeld(t *testing.T) {
	d, err := Parse([]byte(schemas))
	if err != nil {
		t.Fatal(err)
	}
	const id = `"id":"0190b5a0-0000-7000-8000-0000000000aa"`
	good := d.At("good")
	for text, want := range map[string]string{
		`{` + id + `,"n":1,"at":"2026-11-23T01:02:03.4Z","code":"AB","kind":"b","one":1,"list":[true],"both":"xy"}`: "",
		`{` + id + `,"n":9,"list":null}`:      "",
		`[]`:                                  "not of type object",
		`{"n":1}`:                             "id is missing",
		`{"id":"17","n":1}`:                   "format uuid",
		`{` + id + `,"n":0}`:                  "minimum",
		`{` + id + `,"n":10}`:                 "maximum",
		`{` + id + `,"n":1.5}`:                "not of type integer",
		`{` + id + `,"n":"1"}`:                "not of type integer",
		`{` + id + `,"n":1,"x":1}`:            "x is not known",
		`{` + id + `,"n":1,"at":"yesterday"}`: "format date-time",
		`{` + id + `,"n":1,"code":"ab"}`:      "pattern",
		`{` + id + `,"n":1,"code":"A"}`:       "minLength",
		`{` + id + `,"n":1,"code":"ABCD"}`:    "maxLength",
		`{` + id + `,"n":1,"kind":"c"}`:       "none of",
		`{` + id + `,"n":1,"one":2}`:          "is not 1",
		`{` + id + `,"n":1,"list":[1]}`:       "list[0]: 1 is not of type boolean",
		`{` + id + `,"n":1,"both":"x"}`:       "minLength",
		`{` + id:                              "no JSON",
	} {
		wrong := strings.Join(d.Check(good, []byte(text)), "; ")
		if (want == "") != (wrong == "") || !strings.Contains(wrong, want) {
			t.Errorf("%s: %q, want %q", text, wrong, want)
		}
	}
	for name, want := range map[string]string{"strange": "contentEncoding", "unformed": "shoe-size", "broken": "no schema", "missing": "no schema"} {
		if wrong := strings.Join(d.Check(d.At(name), []byte(`"x"`)), "; "); !strings.Contains(wrong, want) {
			t.Errorf("%s: %q, want %q", name, wrong, want)
		}
	}
	if broken := d.Broken(); !slices.Equal(broken, []string{"#/nowhere"}) {
		t.Errorf("broken references: %v", broken)
	}
}

const document = `{"openapi": "3.1.0", "paths": {"/things/{id}": {"get": {"operationId": "get-thing", "responses": {
	"200": {"headers": {"ETag": {}}, "content": {"application/json": {"schema": {"type": "integer"}}}},
	"304": {"description": "same"},
	"404": {"content": {"application/problem+json": {"schema": {"allOf": [{"type": "object"}, {"properties": {"type": {"enum": ["a", "b"]}}}]}}}}}}}}}`

func TestAnswersAreHeldToTheDocument(t *testing.T) {
	a, err := OpenAPI([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	head := func(media string) http.Header { return http.Header{"Content-Type": {media}, "Etag": {"1"}} }
	for _, c := range []struct {
		path   string
		status int
		header http.Header
		body   string
		want   string
	}{
		{"/things/1?x=y", 200, head("application/json"), "1", ""},
		{"/things/1", 200, head("application/json"), `"1"`, "not of type integer"},
		{"/things/1", 200, head("text/plain"), "1", `the body is "text/plain"`},
		{"/things/1", 200, http.Header{"Content-Type": {"application/json"}}, "1", "header ETag"},
		{"/things/1", 304, nil, "1", "there is a body"},
		{"/things/1", 500, nil, "", "does not document the status 500"},
		{"/things/1", 404, head("application/problem+json"), `{"type":"c"}`, "none of"},
		{"/things/1", 404, head("application/problem+json"), `{"type":"b"}`, ""},
		{"/things", 404, nil, "x", ""},
		{"/things/1/2", 404, nil, "x", ""},
	} {
		wrong := strings.Join(a.Check("GET", c.path, c.status, c.header, []byte(c.body)), "; ")
		if (c.want == "") != (wrong == "") || !strings.Contains(wrong, c.want) {
			t.Errorf("%+v: %q", c, wrong)
		}
	}
	if unseen := a.Unseen(); !slices.Equal(unseen, []string{"get-thing 404 a"}) {
		t.Errorf("unseen: %v", unseen)
	}
	if ids := a.Operations(); !slices.Equal(ids, []string{"get-thing"}) {
		t.Errorf("operations: %v", ids)
	}
	for _, text := range []string{`{"openapi":"3.0.3"}`, `{"openapi":"3.1.0","x":{"$ref":"#/y"}}`, `{`} {
		if _, err := OpenAPI([]byte(text)); err == nil {
			t.Errorf("%s is taken for a good document", text)
		}
	}
}
