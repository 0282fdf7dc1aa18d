package orders_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/uuid"

	"github.com/oncebox/oncebox/orders"
)

// A hostile request, and the problem that answers it.
type hostile struct {
	method, path string
	header       []string // names and values; of one name the later ones, too
	body         string
	status       int
	slug         string
}

// post is one with a good key and a good type.
func post(body string, status int, slug string) hostile {
	return hostile{"POST", "/v1/orders", []string{"Content-Type", "application/json", "Idempotency-Key", uuid.NewString()}, body, status, slug}
}

// field is a good order but for one member.
func field(name, value string, status int, slug string) hostile {
	fields := []string{"customer_id", `"c"`, "amount", "1", "currency", `"USD"`, "description", `"d"`}
	var members []string
	for i := 0; i < len(fields); i += 2 {
		v := fields[i+1]
		if fields[i] == name {
			v = value
		}
		members = append(members, fmt.Sprintf("%q:%s", fields[i], v))
	}
	return post("{"+strings.Join(members, ",")+"}", status, slug)
}

func typed(contentType string) hostile {
	h := post(body, 415, "media-type")
	h.header[1] = contentType
	return h
}

func encoded(body, encoding string) hostile {
	h := post(body, 415, "media-type")
	h.header = append(h.header, "Content-Encoding", encoding)
	return h
}

func get(path string, status int, slug string) hostile {
	return hostile{"GET", path, nil, "", status, slug}
}

func put(id, body, ifMatch string, status int, slug string) hostile {
	return hostile{"PUT", "/v1/orders/" + id, []string{"Content-Type", "application/json", "If-Match", ifMatch}, body, status, slug}
}

func keyed(key ...string) hostile {
	h := post(body, 400, "key-invalid")
	h.header = h.header[:2]
	for _, k := range key {
		h.header = append(h.header, "Idempotency-Key", k)
	}
	return h
}

func inUTF16(s string) string {
	var b bytes.Buffer
	for _, u := range utf16.Encode([]rune(s)) {
		b.WriteByte(byte(u))
		b.WriteByte(byte(u >> 8))
	}
	return b.String()
}

func zipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, s) // a buffer does not fail
	_ = w.Close()
	return b.String()
}

const (
	attack = `<script>alert(1)</script>`
	sql    = `'; DROP TABLE orders; --`
)

// hostiles are requests that no order comes of. id is of an order that there is.
func hostiles(id string) map[string]hostile {
	var million strings.Builder
	for i := range 1_000_000 {
		fmt.Fprintf(&million, `,"m%d":0`, i)
	}
	all := map[string]hostile{
		"no body":                  post("", 400, "malformed"),
		"blanks":                   post(" \t\r\n", 400, "malformed"),
		"truncated":                post(body[:len(body)-1], 400, "malformed"),
		"truncated in a string":    post(body[:20], 400, "malformed"),
		"bytes behind":             post(body+"x", 400, "malformed"),
		"a second value behind":    post(body+body, 400, "malformed"),
		"a NUL behind":             post(body+"\x00", 400, "malformed"),
		"no JSON":                  post(strings.ReplaceAll(body, `"`, `'`), 400, "malformed"),
		"a comment":                post(`{/**/}`, 400, "malformed"),
		"a comma too many":         post(strings.Replace(body, "}", ",}", 1), 400, "malformed"),
		"null":                     post("null", 422, "invalid"),
		"an array":                 post("["+body+"]", 422, "invalid"),
		"a string":                 post(`"order"`, 422, "invalid"),
		"a number":                 post("1", 422, "invalid"),
		"an empty object":          post("{}", 422, "invalid"),
		"a byte order mark":        post("\xef\xbb\xbf"+body, 400, "malformed"),
		"UTF-16":                   post(inUTF16(body), 400, "malformed"),
		"UTF-16 with its mark":     post("\xff\xfe"+inUTF16(body), 400, "malformed"),
		"20,000 arrays deep":       post(strings.Repeat("[", 20_000)+strings.Repeat("]", 20_000), 400, "malformed"),
		"12,000 objects deep":      post(strings.Repeat(`{"":`, 12_000)+"1"+strings.Repeat("}", 12_000), 400, "malformed"),
		"33 levels deep":           field("description", strings.Repeat("[", 32)+strings.Repeat("]", 32), 400, "malformed"),
		"a million members":        post(body[:len(body)-1]+million.String()+"}", 413, "body-too-large"),
		"one byte too many":        post(body+strings.Repeat(" ", 64<<10-len(body)+1), 413, "body-too-large"),
		"a name twice":             post(strings.Replace(body, "{", `{"amount":1,`, 1), 400, "malformed"),
		"a name twice, escaped":    post(strings.Replace(body, "{", `{"\u0061mount":1,`, 1), 400, "malformed"),
		"a name twice inside":      field("description", `{"a":1,"b":{"c":1,"c":1}}`, 400, "malformed"),
		"a name in another case":   post(strings.Replace(body, "{", `{"Amount":1,`, 1), 422, "invalid"),
		"an unknown name":          post(strings.Replace(body, "{", `{"status":"paid",`, 1), 422, "invalid"),
		"a script as a name":       post(strings.Replace(body, "{", `{"`+attack+`":1,`, 1), 422, "invalid"),
		"__proto__":                post(strings.Replace(body, "{", `{"__proto__":{},`, 1), 422, "invalid"),
		"an escape as a name":      post(strings.Replace(body, "{", `{"\u001b[2J":1,`, 1), 422, "invalid"),
		"text/plain":               typed("text/plain"),
		"a form":                   typed("application/x-www-form-urlencoded"),
		"multipart":                typed("multipart/form-data; boundary=x"),
		"another JSON":             typed("application/merge-patch+json"),
		"UTF-16 by its charset":    typed("application/json; charset=utf-16"),
		"a type that is none":      typed("application/json; ="),
		"an empty type":            typed(""),
		"gzip bomb":                encoded(zipped(strings.Repeat("\x00", 10<<20)), "gzip"),
		"gzip":                     encoded(zipped(body), "gzip"),
		"deflate":                  encoded(body, "deflate"),
		"gzip that is not said":    post(zipped(body), 400, "malformed"),
		"no key":                   {"POST", "/v1/orders", []string{"Content-Type", "application/json"}, body, 400, "key-missing"},
		"an empty key":             keyed(`""`),
		"two keys":                 keyed("a", "b"),
		"one key twice":            keyed("a", "a"),
		"a key with a blank":       keyed("a b"),
		"a key of 256 bytes":       keyed(strings.Repeat("k", 256)),
		"a key of 10 kB":           keyed(strings.Repeat("k", 10_000)),
		"a key that is a script":   keyed(attack),
		"a key beyond ASCII":       keyed("schlüssel"),
		"a PUT without condition":  {"PUT", "/v1/orders/" + id, []string{"Content-Type", "application/json"}, changed, 428, "precondition-required"},
		"a PUT with a stale ETag":  put(id, changed, `"99"`, 412, "precondition-failed"),
		"a PUT with no ETag":       put(id, changed, attack, 422, "invalid"),
		"a PUT of an amount":       put(id, body, "*", 422, "invalid"),
		"a PUT without its half":   put(id, `{"customer_id":"c"}`, "*", 422, "invalid"),
		"a PUT that is truncated":  put(id, changed[:9], "*", 400, "malformed"),
		"a PUT of text":            {"PUT", "/v1/orders/" + id, []string{"Content-Type", "text/plain", "If-Match", "*"}, changed, 415, "media-type"},
		"a PUT to nowhere":         put(uuid.NewString(), changed, "*", 404, "not-found"),
		"a DELETE of nothing":      {"DELETE", "/v1/orders/" + uuid.NewString(), nil, "", 404, "not-found"},
		"a DELETE of no id":        {"DELETE", "/v1/orders/17", nil, "", 422, "invalid"},
		"a stale DELETE":           {"DELETE", "/v1/orders/" + id, []string{"If-Match", `"99"`}, "", 412, "precondition-failed"},
		"PATCH":                    {"PATCH", "/v1/orders/" + id, nil, changed, 405, "method-not-allowed"},
		"DELETE of all":            {"DELETE", "/v1/orders", nil, "", 405, "method-not-allowed"},
		"POST of one":              {"POST", "/v1/orders/" + id, nil, body, 405, "method-not-allowed"},
		"TRACE":                    {"TRACE", "/v1/orders", nil, "", 405, "method-not-allowed"},
		"a method of its own":      {"BREW", "/v1/orders", nil, "", 405, "method-not-allowed"},
		"nothing there":            get("/nowhere", 404, "not-found"),
		"a script as a path":       get("/%3Cscript%3Ealert(1)%3C/script%3E", 404, "not-found"),
		"a slash too many":         get("/v1//orders", 404, "not-found"),
		"dots":                     get("/v1/orders/../orders", 404, "not-found"),
		"escaped dots and slashes": get("/v1/orders/..%2f..%2fetc%2fpasswd", 404, "not-found"),
		"escaped dots":             get("/v1/orders/%2e%2e/orders", 404, "not-found"),
		"an id that is none":       get("/v1/orders/17", 422, "invalid"),
		"SQL as an id":             get("/v1/orders/'%20OR%201=1%20--", 422, "invalid"),
		"a script as an id":        get("/v1/orders/%3Cscript%3E", 422, "invalid"),
		"a NUL in an id":           get("/v1/orders/"+id+"%00", 400, "malformed"),
		"bad UTF-8 in an id":       get("/v1/orders/%ff%fe", 400, "malformed"),
		"a URN as an id":           get("/v1/orders/urn:uuid:"+id, 404, "not-found"),
		"braces around an id":      get("/v1/orders/%7B"+id+"%7D", 404, "not-found"),
		"an id of 8 kB":            get("/v1/orders/"+strings.Repeat("a", 8000), 422, "invalid"),
		"the nil id":               get("/v1/orders/"+uuid.Nil.String(), 404, "not-found"),
		"a condition that is none": {"GET", "/v1/orders/" + id, []string{"If-None-Match", "1"}, "", 422, "invalid"},
	}
	for name, value := range map[string]string{
		"of 1e9": "1e9", "of 1000000000": "1000000000", "of 201": "201", "of 0": "0", "below 0": "-1", "beyond 64 bits": "99999999999999999999",
		"in hex": "0x10", "as text": "ten", "with a fraction": "1.5", "that is a script": "%3Cscript%3E",
	} {
		all["a limit "+name] = get("/v1/orders?limit="+value, 422, "invalid")
	}
	for name, value := range map[string]string{
		"of garbage": "garbage", "of nothing known": "AAAAAAAAAAAAAAAAAAAAAAAAAAA", "that is a script": "%3Cscript%3E", "of SQL": "'%20OR%201=1", "of ../": "..%2f..%2f",
	} {
		all["a cursor "+name] = get("/v1/orders?cursor="+value, 422, "cursor-invalid")
	}
	for query, want := range map[string]struct {
		status int
		slug   string
	}{
		"cursor=" + strings.Repeat("A", 10_000): {422, "invalid"}, "status=shipped": {422, "invalid"}, "status=" + "'%20OR%201=1": {422, "invalid"},
		"show_deleted=perhaps": {422, "invalid"}, "stauts=paid": {422, "invalid"}, "%3Cscript%3E=1": {422, "invalid"}, "limit=1&limit=2": {400, "malformed"},
		"status=paid&status=": {400, "malformed"}, "limit=%zz": {400, "malformed"}, "limit=1;status=paid": {400, "malformed"}, "status=pai%00d": {400, "malformed"},
		"status=%ff": {400, "malformed"}, "status=a%0d%0aSet-Cookie:x": {400, "malformed"}, "%1b[2J=1": {400, "malformed"},
	} {
		all["the query "+query[:min(len(query), 30)]] = get("/v1/orders?"+query, want.status, want.slug)
	}
	for _, amount := range []string{"1.5", "1.0", "1e3", "1E0", "0", "-0", "-1", "1000000000001", "9223372036854775808", "99999999999999999999",
		`"1"`, "null", "true", "[1]", `{"value":1}`} {
		all["an amount of "+amount] = field("amount", amount, 422, "invalid")
	}
	for _, amount := range []string{"010", "+1", "0x10", "1_000", ".5", "1.", "1e400", "NaN", "Infinity", "--1", ""} {
		all["an amount that is no number: "+amount] = field("amount", amount, 400, "malformed")
	}
	for _, currency := range []string{`"usd"`, `"US"`, `"USDT"`, `""`, `"ＵＳＤ"`, `"USD\n"`, `840`, `null`, `["USD"]`} {
		all["a currency of "+currency] = field("currency", currency, 422, "invalid")
	}
	for _, customer := range []string{`""`, `"` + attack + `"`, `"` + sql + `"`, `"a\u0000b"`, `"a\r\nSet-Cookie: x"`, `"\u001b[31mred"`, `"a b"`, `"ü"`,
		`"` + strings.Repeat("c", 256) + `"`, `1`, `null`, `["c"]`, `"\ud83d\ude00"`} {
		all["a customer of "+customer[:min(len(customer), 30)]] = field("customer_id", customer, 422, "invalid")
	}
	for _, text := range []string{`"a\u0000b"`, `"a\r\nb"`, `"a\tb"`, `"\u001b[31mred"`, `"\u007f"`, `"\u009b31mred"`, `"` + strings.Repeat("d", 1025) + `"`, `null`, `1`} {
		all["a description of "+text[:min(len(text), 30)]] = field("description", text, 422, "invalid")
	}
	for name, text := range map[string]string{"bad UTF-8": "\"\xff\"", "UTF-8 that is too long": "\"\xc0\xaf\"", "a surrogate in UTF-8": "\"\xed\xa0\x80\"",
		"half a pair": `"\ud800"`, "the other half": `"\udc00"`, "a pair the other way": `"\ude00\ud83d"`, "half a pair and text": `"\ud83dx"`,
		"a raw NUL": "\"\x00\"", "a raw line break": "\"\n\"", "an unknown escape": `"\x41"`} {
		all["a description with "+name] = field("description", text, 400, "malformed")
	}
	return all
}

// send writes a request as it stands and reads the answer, with the method's own rules and nobody's mending.
func (r *rig) send(h hostile) reply {
	r.t.Helper()
	var req bytes.Buffer
	fmt.Fprintf(&req, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", h.method, h.path)
	for i := 0; i < len(h.header); i += 2 {
		fmt.Fprintf(&req, "%s: %s\r\n", h.header[i], h.header[i+1])
	}
	fmt.Fprintf(&req, "Content-Length: %d\r\n\r\n%s", len(h.body), h.body)
	got := r.raw(&req)
	r.wantDescribed(h.method, h.path, got)
	return got
}

func (r *rig) raw(req io.Reader) reply {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.server.Listener.Addr().String())
	must(r.t, err)
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, req) // the server may answer and hang up before it has read all
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(r.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must(r.t, err)
	return reply{res.StatusCode, res.Header, string(b)}
}

// links are those that answers have: to the API's description, and from the problems of keys to what they mean.
var links = []string{
	`</openapi.json>; rel="service-desc describedby"`,
	`<https://github.com/oncebox/oncebox/blob/main/docs/idempotency.md>; rel="describedby"`,
}

// wantHarmless is a problem in printable ASCII, with nothing in it that a browser or a terminal would take for more than text, nor a
// name that was sent.
func (r *rig) wantHarmless(got reply, status int, slug string) {
	r.t.Helper()
	r.wantProblem(got, status, slug)
	harmful := func(c rune) bool { return c != '\n' && (c < ' ' || c > '~') || c == '<' || c == '>' }
	if strings.ContainsFunc(got.body, harmful) || strings.Contains(got.body, "alert") || strings.Contains(got.body, "stauts") ||
		got.header.Get("X-Content-Type-Options") != "nosniff" || len(got.body) > 4000 {
		r.t.Errorf("the answer is harmful: %v %q", got.header, got.body)
	}
	for name, values := range got.header {
		if name == "Link" && len(values) == 1 && slices.Contains(links, values[0]) {
			continue
		}
		if strings.ContainsFunc(strings.Join(values, ""), harmful) || name == "Set-Cookie" {
			r.t.Errorf("the header %s is harmful: %q", name, values)
		}
	}
}

func TestHostileRequestsAreProblemsAndLeaveNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, o := r.post("key-1")
	all := hostiles(o.ID)
	if len(all) < 50 {
		t.Fatalf("only %d requests", len(all))
	}
	for name, h := range all {
		t.Run(name, func(t *testing.T) {
			r := r.at(t)
			r.wantHarmless(r.send(h), h.status, h.slug)
			r.wantRows(1, 1)
		})
	}
	if now := r.get(o.ID); now != o {
		t.Errorf("the order is %+v, was %+v", now, o)
	}
	t.Logf("%d hostile requests", len(all))

	// With these few, each answer that the API's description has was given: what it says of itself is what it does.
	deleted := r.paid("key-2")
	r.do("GET", "/v1/orders/"+o.ID, "", "If-None-Match", "*")
	r.do("GET", "/v1/orders/"+o.ID, "", "If-Match", `"99"`)
	r.do("GET", "/v1/orders/"+o.ID+"?%zz", "")
	r.do("GET", "/v1/orders", "")
	r.do("PUT", "/v1/orders/"+o.ID, changed, "If-Match", "*")
	r.do("PUT", "/v1/orders/"+o.ID, changed+strings.Repeat(" ", 64<<10), "If-Match", "*")
	r.do("DELETE", "/v1/orders/"+deleted.ID, "")
	r.do("DELETE", "/v1/orders/"+deleted.ID+"?%zz", "")
	r.do("PUT", "/v1/orders/"+deleted.ID, changed, "If-Match", "*")
	r.do("POST", "/v1/orders", changed, "Idempotency-Key", "key-1")
	r.do("POST", "/v1/orders", strings.Replace(body, "10000", "20000", 1), "Idempotency-Key", "key-1")
	for _, key := range [][]string{{"Idempotency-Key", `""`}, {"Idempotency-Key", "key-1"}} {
		r.do("PUT", "/v1/orders/"+o.ID, changed, append(key, "If-Match", "*")...)
		r.do("DELETE", "/v1/orders/"+o.ID, "", key...)
	}
	// What the listener answers, and what a database that is away or a body that does not come makes of it, have tests of their own.
	for _, answer := range r.described.Unseen("internal", "store-unavailable", "timeout", "key-in-url", "api-key-missing", "api-key-unknown", "headers-too-large", "in-progress", "outcome-unknown", "unfinished") {
		t.Errorf("never answered, as its description says it may: %s", answer)
	}
}

func TestTheDescriptionNamesTheHeadersThatAreNeeded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, c := range []struct{ method, path, want string }{
		{"POST", "/v1/orders", "Idempotency-Key"}, {"PUT", "/v1/orders/1", "If-Match"}, {"GET", "/v1/orders", ""}, {"DELETE", "/v1/orders/1", ""},
	} {
		if got := strings.Join(r.described.Required(c.method, c.path), " "); got != c.want {
			t.Errorf("%s %s requires %s, want %s", c.method, c.path, got, c.want)
		}
	}
	if ids := strings.Join(r.described.Operations(), " "); ids != "create-order delete-order get-order list-orders update-order" {
		t.Errorf("the operations are %s", ids)
	}
}

// Bodies whose form on the wire is the matter: in chunks without an end, too short, of chunks that are none.
func TestHostileBodiesOnTheWire(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const head = "POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\nConnection: close\r\n"
	chunk := strings.Repeat("x", 1<<10)
	ten := make([]io.Reader, 0, 10<<10)
	for range 10 << 10 {
		ten = append(ten, strings.NewReader("400\r\n"+chunk+"\r\n"))
	}
	for name, c := range map[string]struct {
		req    io.Reader
		status int
		slug   string
	}{
		"10 MB in chunks":      {io.MultiReader(append([]io.Reader{strings.NewReader(head + "Transfer-Encoding: chunked\r\n\r\n")}, ten...)...), 413, "body-too-large"},
		"shorter than said":    {strings.NewReader(head + "Content-Length: 1000\r\n\r\n" + body), 400, "malformed"},
		"a chunk that is none": {strings.NewReader(head + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + body), 400, "malformed"},
		"chunks without end":   {strings.NewReader(head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":"), 400, "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			r := r.at(t)
			r.wantHarmless(r.raw(c.req), c.status, c.slug)
			r.wantRows(0, 0)
		})
	}
}

func TestABodyThatDoesNotComeIsATimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stuck, end := io.Pipe()
	t.Cleanup(func() { _ = end.Close() })
	got := r.raw(io.MultiReader(strings.NewReader("POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+
		"Idempotency-Key: k\r\nContent-Length: 100\r\n\r\n{"), stuck))
	r.wantHarmless(got, http.StatusRequestTimeout, "timeout")
	r.wantRows(0, 0)
}

// Text is text: it is kept as it is, and cannot be taken for markup on its way.
func TestTextIsKeptAndEscaped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const text = attack + ` & '; DROP TABLE orders; -- 日本 😀`
	description, err := json.Marshal(text)
	must(t, err)
	h := field("description", string(description), 0, "")
	made := r.send(h)
	var o orders.Order
	must(t, json.Unmarshal([]byte(made.body), &o))
	if made.status != http.StatusCreated || o.Description != text || strings.ContainsAny(made.body, "<>&") {
		t.Errorf("%d %s", made.status, made.body)
	}
	if now := r.get(o.ID); now != o {
		t.Errorf("the order is %+v, was %+v", now, o)
	}
}
