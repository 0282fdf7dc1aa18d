package service

import (
	"context"
	"net/http"
	"reflect"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
)

// problemPrefix makes a problem's slug its type.
const problemPrefix = "urn:oncebox:problem:"

// A ProblemType is a kind of problem that the APIs answer with. docs/problems.md explains each.
type ProblemType struct {
	// Slug is the stable end of its type URN.
	Slug string
	// Status is the HTTP status that it comes with.
	Status int
	// Title says the same of each problem of the type.
	Title string
}

// ProblemTypes are all that there are.
var ProblemTypes = []ProblemType{
	{"malformed", http.StatusBadRequest, "The request cannot be read"},
	{"key-missing", http.StatusBadRequest, "There is no Idempotency-Key"},
	{"key-invalid", http.StatusBadRequest, "The Idempotency-Key is malformed"},
	{"key-in-url", http.StatusBadRequest, "An API key came in the URL"},
	{"api-key-missing", http.StatusUnauthorized, "There is no API key"},
	{"api-key-unknown", http.StatusUnauthorized, "The API key is not known"},
	{"admin-token", http.StatusUnauthorized, "The admin token is missing or wrong"},
	{"declined", http.StatusPaymentRequired, "The charge is declined"},
	{"no-admin-token", http.StatusForbidden, "The admin listener takes no writes"},
	{"not-found", http.StatusNotFound, "There is no such thing"},
	{"method-not-allowed", http.StatusMethodNotAllowed, "The path has other methods"},
	{"timeout", http.StatusRequestTimeout, "The request came too slowly"},
	{"in-progress", http.StatusConflict, "The request is being worked on"},
	{"outcome-unknown", http.StatusConflict, "Nobody knows what became of the request"},
	{"deleted", http.StatusConflict, "What is to be changed is deleted"},
	{"letter-stays", http.StatusConflict, "The dead letter cannot be retried now"},
	{"precondition-failed", http.StatusPreconditionFailed, "A condition of the request does not hold"},
	{"body-too-large", http.StatusRequestEntityTooLarge, "The body is too large"},
	{"media-type", http.StatusUnsupportedMediaType, "The body is of another type than is taken"},
	{"invalid", http.StatusUnprocessableEntity, "The request says what cannot be"},
	{"key-reused", http.StatusUnprocessableEntity, "The Idempotency-Key is another request's"},
	{"cursor-invalid", http.StatusUnprocessableEntity, "The cursor is none of this list"},
	{"precondition-required", http.StatusPreconditionRequired, "The request needs a condition"},
	{"headers-too-large", http.StatusRequestHeaderFieldsTooLarge, "The headers are too large"},
	{"internal", http.StatusInternalServerError, "The service failed"},
	{"store-unavailable", http.StatusServiceUnavailable, "The store cannot be reached"},
	{"unfinished", http.StatusServiceUnavailable, "The request took too long"},
}

// anywhere are the types that each operation may answer with, withBody those of the ones that take a body.
var (
	anywhere = []string{"malformed", "key-in-url", "api-key-missing", "api-key-unknown", "invalid", "headers-too-large", "internal",
		"store-unavailable"}
	withBody = []string{"timeout", "body-too-large", "media-type"}
)

// slugs are the types of the problems that the framework finds, by status.
var slugs = map[int]string{
	http.StatusBadRequest:            "malformed",
	http.StatusRequestTimeout:        "timeout",
	http.StatusRequestEntityTooLarge: "body-too-large",
	http.StatusUnsupportedMediaType:  "media-type",
	http.StatusUnprocessableEntity:   "invalid",
	http.StatusServiceUnavailable:    "store-unavailable",
	http.StatusInternalServerError:   "internal",
}

// A problem is the document of one (RFC 9457).
type problem struct {
	Type   string         `json:"type" format:"uri"`
	Title  string         `json:"title" doc:"The same for each problem of the type."`
	Status int            `json:"status" doc:"The response's status."`
	Detail string         `json:"detail,omitempty" doc:"What is wrong here."`
	Errors []problemPlace `json:"errors,omitempty" nullable:"false" doc:"Where it is wrong."`

	// Those of the Idempotency-Key's problems, which package idempotency writes.
	Code            string `json:"code,omitempty" doc:"The end of the type, if the problem is one of the Idempotency-Key's."`
	Retryable       *bool  `json:"retryable,omitempty" doc:"Whether the same request may be sent again with the same Idempotency-Key."`
	SafeToUseNewKey *bool  `json:"safe_to_use_new_key,omitempty" doc:"Whether what is wanted may be asked for under a new Idempotency-Key."`
}

type problemPlace struct {
	Message  string `json:"message"`
	Location string `json:"location,omitempty" doc:"Such as body.amount or query.limit. What was sent there is not repeated."`
}

func (p *problem) Error() string             { return p.Detail }
func (p *problem) GetStatus() int            { return p.Status }
func (p *problem) ContentType(string) string { return problemMedia }

const problemMedia = "application/problem+json"

// Problem returns the error that answers a request with a problem document. slug is of one of [ProblemTypes], and status its own.
func Problem(status int, slug, detail string) error { return newProblem(status, slug, detail) }

func newProblem(status int, slug, detail string) *problem {
	p := &problem{Type: problemPrefix + slug, Title: http.StatusText(status), Status: status, Detail: detail}
	if t, ok := problemType(slug); ok {
		p.Title = t.Title
	}
	return p
}

func problemType(slug string) (ProblemType, bool) {
	i := slices.IndexFunc(ProblemTypes, func(t ProblemType) bool { return t.Slug == slug })
	if i < 0 {
		return ProblemType{}, false
	}
	return ProblemTypes[i], true
}

// Register adds an operation to api, documented with the problems that it answers with: those of slugs, and those of any.
func Register[I, O any](api huma.API, op huma.Operation, slugs []string, handler func(context.Context, *I) (*O, error)) {
	if op.Responses == nil {
		op.Responses = make(map[string]*huma.Response)
	}
	slugs = slices.Concat(anywhere, slugs)
	if op.Method == http.MethodPost || op.Method == http.MethodPut {
		slugs = append(slugs, withBody...)
	}
	for _, t := range ProblemTypes {
		if slices.Contains(slugs, t.Slug) {
			documentProblem(api.OpenAPI().Components.Schemas, op.Responses, t)
		}
	}
	huma.Register(api, op, handler)
}

// RequireHeader says in an operation's description that it needs a header. Its lack is a problem of its own, which huma would not make
// of it.
func RequireHeader(op *huma.Operation, name string) {
	for _, p := range op.Parameters {
		if p.In == "header" && p.Name == name {
			p.Required = true
		}
	}
}

// documentProblem adds t to those that come with its status.
func documentProblem(registry huma.Registry, responses map[string]*huma.Response, t ProblemType) {
	code := strconv.Itoa(t.Status)
	r := responses[code]
	if r == nil {
		r = &huma.Response{Description: t.Title, Content: map[string]*huma.MediaType{problemMedia: {Schema: &huma.Schema{AllOf: []*huma.Schema{
			registry.Schema(reflect.TypeFor[problem](), true, "Problem"),
			{Type: huma.TypeObject, Properties: map[string]*huma.Schema{"type": {Type: huma.TypeString}}},
		}}}}}
		responses[code] = r
	} else {
		r.Description += ". Or: " + t.Title
	}
	types := r.Content[problemMedia].Schema.AllOf[1].Properties["type"]
	types.Enum = append(types.Enum, problemPrefix+t.Slug)
}
