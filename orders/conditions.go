package orders

import (
	"regexp"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// Conditions are those of a request (RFC 9110, section 13): what it wants the order's ETag to be, or not to be.
type Conditions struct {
	IfMatch     string `header:"If-Match" doc:"ETags, separated by commas, or *: only if the order has one of them."`
	IfNoneMatch string `header:"If-None-Match" doc:"ETags, separated by commas, or *: only if the order has none of them."`

	match, noneMatch etags
}

// Resolve reads all lines of both headers; the fields above have the first.
func (c *Conditions) Resolve(ctx huma.Context) []error {
	var errs []error
	read := func(name string, to *etags) {
		var lines []string
		ctx.EachHeader(func(n, value string) {
			if strings.EqualFold(n, name) {
				lines = append(lines, value)
			}
		})
		var ok bool
		if *to, ok = parseETags(strings.Join(lines, ",")); !ok {
			errs = append(errs, &huma.ErrorDetail{Location: "header." + name, Message: `expected ETags such as "3", separated by commas, or *`})
		}
	}
	read("If-Match", &c.match)
	read("If-None-Match", &c.noneMatch)
	return errs
}

// etags are a condition's, as they stand: "3", W/"3" or *.
type etags []string

const maxETags = 50

var oneETag = regexp.MustCompile(`^(?:W/)?"[\x21\x23-\x7e]*"`)

func parseETags(header string) (tags etags, ok bool) {
	header = strings.Trim(header, " \t")
	if header == "*" {
		return etags{"*"}, true
	}
	for header != "" && len(tags) < maxETags {
		tag := oneETag.FindString(header)
		if tag == "" {
			return nil, false
		}
		tags = append(tags, tag)
		rest := strings.TrimLeft(header[len(tag):], " \t")
		header = strings.TrimLeft(rest, ", \t") // a list may have empty elements
		if rest != "" && rest[0] != ',' {
			return nil, false
		}
	}
	return tags, header == ""
}

// strongly says whether the ETag of something that exists is among t; W/"3" is nobody's.
func (t etags) strongly(etag string) bool {
	return slices.Contains(t, "*") || slices.Contains(t, etag)
}

// weakly is the same, and W/"3" is as good as "3".
func (t etags) weakly(etag string) bool {
	return t.strongly(etag) || slices.Contains(t, "W/"+etag)
}
