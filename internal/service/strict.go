package service

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// bodyLimit bounds a request's body, in bytes.
	bodyLimit = 64 << 10
	// maxDepth bounds how deep its JSON may be nested.
	maxDepth = 32
	// bodyTimeout is how long a body may take to come.
	bodyTimeout = 5 * time.Second
)

// strict lets only such requests through to next as can be read in one way: a query that names nothing twice, a body of
// application/json that names nothing twice, both UTF-8. What another reader of the same bytes might take otherwise is refused.
func strict(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := checkURL(r.URL)
		if p == nil && slices.Contains([]string{http.MethodPost, http.MethodPut, http.MethodPatch}, r.Method) {
			p = takeBody(w, r)
		}
		if p != nil {
			p.write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func checkURL(u *url.URL) *problem {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || !plain(u.Path) {
		return newProblem(http.StatusBadRequest, "malformed", "The path or the query cannot be read.")
	}
	for name, values := range query {
		if len(values) > 1 || !plain(name) || !plain(values[0]) {
			return newProblem(http.StatusBadRequest, "malformed", "The query names something twice, or has characters that no parameter has.")
		}
	}
	return nil
}

func plain(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl) }

// takeBody reads and checks the body, and leaves it in memory for the reader behind.
func takeBody(w http.ResponseWriter, r *http.Request) *problem {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset, ok := params["charset"]; err != nil || media != "application/json" || ok && !strings.EqualFold(charset, "utf-8") {
		return newProblem(http.StatusUnsupportedMediaType, "media-type", "Content-Type must be application/json, in UTF-8.")
	}
	if len(r.Header.Values("Content-Encoding")) > 0 {
		w.Header().Set("Accept-Encoding", "identity")
		return newProblem(http.StatusUnsupportedMediaType, "media-type", "The body must come without a Content-Encoding.")
	}
	// Where there is no deadline to set, as in a recorder, there is nobody to wait for.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	timeout, _ := errors.AsType[net.Error](err)
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case tooLarge:
		return newProblem(http.StatusRequestEntityTooLarge, "body-too-large", fmt.Sprintf("The body has more than %d bytes.", bodyLimit))
	case timeout != nil && timeout.Timeout():
		return newProblem(http.StatusRequestTimeout, "timeout", fmt.Sprintf("The body did not come within %s.", bodyTimeout))
	case err != nil:
		return newProblem(http.StatusBadRequest, "malformed", "The body did not come to its end.")
	}
	if err := checkJSON(body); errors.Is(err, errNull) {
		return newProblem(http.StatusUnprocessableEntity, "invalid", "No member may be null. Leave it out.")
	} else if err != nil {
		return newProblem(http.StatusBadRequest, "malformed", "The body must be one JSON value: "+err.Error()+".")
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	return nil
}

var (
	errSyntax = errors.New("it is none")
	errDepth  = fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	errUTF8   = errors.New("it is not all UTF-8")
	errNull   = errors.New("a member is null")
	errTwice  = errors.New("an object names a member twice")
)

// checkJSON refuses what encoding/json or the validation lets pass: names that come twice, bytes that are no UTF-8, halves of surrogate
// pairs, and members that are null, which would count as left out.
func checkJSON(b []byte) error {
	if !utf8.Valid(b) || !wholePairs(b) {
		return errUTF8
	}
	var (
		d     = json.NewDecoder(bytes.NewReader(b))
		open  []map[string]bool // the names of each object that is open; nil for an array
		named bool              // the next string in an object is a value
		done  bool              // the value is complete
	)
	d.UseNumber()
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && done {
			return nil
		}
		if err != nil || done {
			return errSyntax
		}
		top := len(open) - 1
		switch t := token.(type) {
		case json.Delim:
			switch t {
			case '{', '[':
				if len(open) == maxDepth {
					return errDepth
				}
				open = append(open, nil)
				if t == '{' {
					open[len(open)-1] = make(map[string]bool)
				}
				named = false
				continue
			default:
				open = open[:top]
				top--
			}
		case string:
			if top >= 0 && open[top] != nil && !named {
				if open[top][t] {
					return errTwice
				}
				open[top][t], named = true, true
				continue
			}
		case nil:
			if top >= 0 {
				return errNull
			}
		}
		named, done = false, top < 0
	}
}

// wholePairs says whether no \u escape is half a surrogate pair, which encoding/json would make another character of.
func wholePairs(b []byte) bool {
	unit := func(i int) rune { // of the escape at i, or -1
		if i+6 > len(b) || b[i] != '\\' || b[i+1] != 'u' {
			return -1
		}
		n, err := strconv.ParseUint(string(b[i+2:i+6]), 16, 16)
		if err != nil {
			return -1
		}
		return rune(n)
	}
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		if first := unit(i); utf16.IsSurrogate(first) {
			if utf16.DecodeRune(first, unit(i+6)) == utf8.RuneError {
				return false
			}
			i += 6
		}
		i++ // what is escaped
	}
	return true
}

// write answers with p. An error there is the client's going away.
func (p *problem) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", problemMedia)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
