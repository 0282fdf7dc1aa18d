package contract

import (
	"fmt"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// An API is what an OpenAPI document says of one, and what of it was seen. It is safe for concurrent use.
type API struct {
	doc Document

	mu   sync.Mutex
	seen map[string]bool
}

// OpenAPI reads the document of an API.
func OpenAPI(text []byte) (*API, error) {
	doc, err := Parse(text)
	if err != nil {
		return nil, err
	}
	if v, _ := doc.At("openapi").(string); !strings.HasPrefix(v, "3.1.") {
		return nil, fmt.Errorf("the document is of OpenAPI %q, not 3.1", v)
	}
	if broken := doc.Broken(); len(broken) > 0 {
		return nil, fmt.Errorf("the references %v lead nowhere", broken)
	}
	return &API{doc: doc, seen: make(map[string]bool)}, nil
}

// Check says what in an answer is not as its operation's document has it, and notes that it was seen. A request to no operation is
// none of its business.
func (a *API) Check(method, path string, status int, header http.Header, body []byte) []string {
	operation := a.operation(method, path)
	if operation == nil {
		return nil
	}
	code := strconv.Itoa(status)
	response := a.doc.follow(asMap(operation["responses"])[code])
	if response == nil {
		return []string{fmt.Sprintf("%v does not document the status %d", operation["operationId"], status)}
	}
	var wrong []string
	for name := range asMap(asMap(response)["headers"]) {
		if header.Get(name) == "" && name != "Idempotent-Replayed" {
			wrong = append(wrong, "the header "+name+" is missing")
		}
	}
	content := asMap(asMap(response)["content"])
	media, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	switch {
	case len(content) == 0 && len(body) > 0:
		wrong = append(wrong, "there is a body")
	case len(content) > 0 && content[media] == nil:
		wrong = append(wrong, fmt.Sprintf("the body is %q", media))
	case len(content) > 0:
		wrong = append(wrong, a.doc.Check(asMap(content[media])["schema"], body)...)
	}
	for i := range wrong {
		wrong[i] = fmt.Sprintf("%v %d: %s", operation["operationId"], status, wrong[i])
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen[fmt.Sprint(operation["operationId"], " ", code, problemType(body))] = true
	return wrong
}

// problemType is that of a body which is a problem, behind a blank.
func problemType(body []byte) string {
	d, err := Parse(body)
	if t, ok := d.root["type"].(string); err == nil && ok {
		return " " + t
	}
	return ""
}

func (a *API) operation(method, path string) map[string]any {
	path, _, _ = strings.Cut(path, "?")
	for template, item := range a.doc.Map("paths") {
		if matches(strings.Split(template, "/"), strings.Split(path, "/")) {
			return asMap(asMap(item)[strings.ToLower(method)])
		}
	}
	return nil
}

func matches(template, path []string) bool {
	return slices.EqualFunc(template, path, func(t, p string) bool { return t == p || strings.HasPrefix(t, "{") && p != "" })
}

// Unseen are the answers that the document has and no call of Check had: an operation, a status, and for a problem its type.
// Those are left out whose type ends in one of elsewhere, which have tests of their own.
func (a *API) Unseen(elsewhere ...string) (answers []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, answer := range a.documented() {
		if !a.seen[answer] && !slices.Contains(elsewhere, answer[strings.LastIndex(answer, ":")+1:]) {
			answers = append(answers, answer)
		}
	}
	return answers
}

func (a *API) documented() (answers []string) {
	for _, item := range a.doc.Map("paths") {
		for _, operation := range asMap(item) {
			for code, response := range asMap(asMap(operation)["responses"]) {
				answer := fmt.Sprint(asMap(operation)["operationId"], " ", code)
				problem := asMap(asMap(asMap(a.doc.follow(response))["content"])["application/problem+json"])
				if problem == nil {
					answers = append(answers, answer)
				}
				parts, _ := asMap(problem["schema"])["allOf"].([]any)
				for _, part := range parts {
					types, _ := asMap(asMap(asMap(part)["properties"])["type"])["enum"].([]any)
					for _, t := range types {
						answers = append(answers, fmt.Sprint(answer, " ", t))
					}
				}
			}
		}
	}
	slices.Sort(answers)
	return answers
}

// Required are the parameters that an operation needs, besides those of its path.
func (a *API) Required(method, path string) (names []string) {
	parameters, _ := a.operation(method, path)["parameters"].([]any)
	for _, p := range parameters {
		if p := asMap(p); p["required"] == true && p["in"] != "path" {
			names = append(names, fmt.Sprint(p["name"]))
		}
	}
	return names
}

// Operations are the ids of the operations that the document has.
func (a *API) Operations() []string {
	ids := make(map[string]bool)
	for _, answer := range a.documented() {
		id, _, _ := strings.Cut(answer, " ")
		ids[id] = true
	}
	return slices.Sorted(maps.Keys(ids))
}
