package service

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/swaggest/swgui"
	"github.com/swaggest/swgui/v5emb"
)

// inline matches the scripts and styles that stand in a page.
var inline = regexp.MustCompile(`(?s)<(script|style)>(.*?)</`)

// docs serves the description of an API, which is complete, and a page that shows it and loads nothing from elsewhere.
func docs(mux *http.ServeMux, description *huma.OpenAPI) {
	document, err := json.Marshal(description)
	if err != nil {
		panic(fmt.Sprintf("service: the API's description: %v", err)) // it is a constant of the program
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(document)
	})

	page := v5emb.NewHandlerWithConfig(swgui.Config{Title: description.Info.Title, SwaggerJSON: "/openapi.json", BasePath: "/docs/",
		SettingsUI: map[string]string{"defaultModelsExpandDepth": "1"}})
	policy := contentPolicy(page)
	mux.HandleFunc("GET /docs/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		page.ServeHTTP(w, r)
	})
}

// contentPolicy lets the page run what stands in it now, by its hash, and what comes from the same place; it speaks to no other.
func contentPolicy(page http.Handler) string {
	w := &pageText{header: http.Header{}}
	page.ServeHTTP(w, &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/docs/"}})
	hashes := map[string]string{}
	for _, m := range inline.FindAllStringSubmatch(w.String(), -1) {
		sum := sha256.Sum256([]byte(m[2]))
		hashes[m[1]] += " 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return strings.Join([]string{
		"default-src 'none'", "script-src 'self'" + hashes["script"],
		"style-src 'self' 'unsafe-inline'", // Swagger UI writes style attributes
		"img-src 'self' data:", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
	}, "; ")
}

// pageText is what a handler writes.
type pageText struct {
	bytes.Buffer
	header http.Header
}

func (p *pageText) Header() http.Header { return p.header }
func (p *pageText) WriteHeader(int)     {}
