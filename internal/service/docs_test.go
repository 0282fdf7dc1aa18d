package service

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// The page must work where there is no way to the net: all that it loads is here, and its policy lets nothing else be loaded.
func TestTheDocsPageNeedsNobodyElse(t *testing.T) {
	t.Parallel()
	api := httptest.NewServer(NewAPI("test", "1", slog.New(slog.DiscardHandler), prometheus.NewRegistry(), func(huma.API) {}))
	t.Cleanup(api.Close)
	get := func(path string) (http.Header, string) {
		t.Helper()
		res, err := http.Get(api.URL + path)
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, res.Status)
		}
		return res.Header, string(b)
	}
	for _, path := range []string{"/docs", "/docs/"} {
		header, page := get(path)
		policy := header.Get("Content-Security-Policy")
		if header.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(header.Get("Content-Type"), "text/html") {
			t.Errorf("%s: %v", path, header)
		}
		directives := make(map[string]string)
		for d := range strings.SplitSeq(policy, "; ") {
			name, value, _ := strings.Cut(d, " ")
			directives[name] = value
		}
		if directives["default-src"] != "'none'" || directives["connect-src"] != "'self'" || directives["frame-ancestors"] != "'none'" ||
			strings.Contains(directives["script-src"], "unsafe") || strings.Contains(policy, "http") || strings.Contains(policy, "*") {
			t.Errorf("%s: the policy is %s", path, policy)
		}
		loaded := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(page, -1)
		if len(loaded) < 4 {
			t.Errorf("the page loads %v", loaded)
		}
		for _, l := range loaded {
			if !strings.HasPrefix(l[1], "/docs/") {
				t.Errorf("the page loads %s", l[1])
				continue
			}
			get(l[1])
		}
		scripts := regexp.MustCompile(`(?s)<script>(.*?)</script>`).FindAllStringSubmatch(page, -1)
		if len(scripts) == 0 || !strings.Contains(page, `"/openapi.json"`) {
			t.Errorf("the page has no script of its own: %s", page)
		}
		for _, s := range scripts {
			sum := sha256.Sum256([]byte(s[1]))
			if !strings.Contains(directives["script-src"], "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") {
				t.Errorf("the policy stops the page's own script %.80s", s[1])
			}
		}
	}
	header, document := get("/openapi.json")
	var d struct{ OpenAPI string }
	if err := json.Unmarshal([]byte(document), &d); err != nil || d.OpenAPI != "3.1.0" || header.Get("Content-Type") != "application/json" {
		t.Errorf("the document is of OpenAPI %q, %v", d.OpenAPI, err)
	}
}
