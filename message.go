package oncebox

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// The names of the headers. The first four are CloudEvents' own, the next four its documented extensions, the rest ours.
const (
	HeaderID            = "ce-id"
	HeaderSource        = "ce-source"
	HeaderType          = "ce-type"
	HeaderTime          = "ce-time"
	HeaderKey           = "ce-partitionkey"
	HeaderVersion       = "ce-sequence"
	HeaderTraceParent   = "ce-traceparent"
	HeaderSpecVersion   = "ce-specversion"
	HeaderCorrelationID = "ce-correlationid"
	HeaderCausationID   = "ce-causationid"
	HeaderTenantID      = "ce-tenantid"
	HeaderSeq           = "ce-outboxseq"
	HeaderContentType   = "content-type"

	// HeaderReplay is set by an outbox on an event that is sent once more, with the Seq under which it was first written.
	HeaderReplay = "oncebox-replay"

	// HeaderRefused is set by a subscriber on a message that it cannot carry as it came, with the reason. [Decode] fails
	// on it; it never goes onto the wire.
	HeaderRefused = "oncebox-refused"
)

const (
	specVersion = "1.0"
	contentType = "application/json"
)

// Message returns e as a Watermill message: its UUID is e.ID, its metadata the headers of e's wire form.
func (e Event) Message() *message.Message {
	m := message.NewMessage(e.ID, e.Data)
	e.EachHeader(m.Metadata.Set)
	return m
}

// EachHeader calls set with each header of e's wire form, once for each name.
func (e Event) EachHeader(set func(name, value string)) {
	typed := false
	for name, value := range e.Headers {
		if name == HeaderContentType {
			typed = value != ""
			if !typed {
				continue
			}
		}
		set(name, value)
	}
	if !typed {
		set(HeaderContentType, contentType)
	}
	set(HeaderSpecVersion, specVersion)
	set(HeaderID, e.ID)
	set(HeaderSource, escape(e.Source))
	set(HeaderType, e.Type)
	set(HeaderKey, escape(e.Key))
	set(HeaderTime, e.Time.UTC().Format(time.RFC3339Nano))
	for _, a := range [...]struct{ name, value string }{
		{HeaderTenantID, e.TenantID}, {HeaderCorrelationID, e.CorrelationID}, {HeaderCausationID, e.CausationID},
		{HeaderTraceParent, e.TraceParent},
	} {
		if a.value != "" {
			set(a.name, escape(a.value))
		}
	}
	if e.Version != 0 {
		set(HeaderVersion, strconv.FormatInt(e.Version, 10))
	}
	if e.Seq != 0 {
		set(HeaderSeq, strconv.FormatInt(e.Seq, 10))
	}
}

// Decode reads an event from a message, whatever the case of its header names. It wraps [ErrInvalid] when a required
// attribute is missing or malformed. Extension attributes that it does not know and the broker's own headers are left out.
// The event shares the payload's memory with m.
func Decode(m *message.Message) (Event, error) {
	m, err := binaryMode(m)
	if err != nil {
		return Event{}, err
	}
	e := Event{Data: m.Payload}
	attrs := make(map[string]string, len(m.Metadata))
	for name, value := range m.Metadata {
		lower := strings.ToLower(name)
		if !strings.HasPrefix(lower, "ce-") {
			switch {
			case lower == HeaderRefused:
				return Event{}, fmt.Errorf("%w: %s", ErrInvalid, value)
			case strings.HasPrefix(lower, "nats-"), lower == HeaderContentType && value == contentType:
				continue
			case e.Headers == nil:
				e.Headers = make(map[string]string)
			}
			e.Headers[name] = value
			continue
		}
		if _, twice := attrs[lower]; twice {
			return Event{}, fmt.Errorf("%w: header %s is sent twice", ErrInvalid, lower)
		}
		attrs[lower] = value
	}
	if attrs[HeaderSpecVersion] != specVersion {
		return Event{}, fmt.Errorf("%w: %s is %.64q, not %s", ErrInvalid, HeaderSpecVersion, attrs[HeaderSpecVersion], specVersion)
	}
	for name, to := range map[string]*string{
		HeaderID: &e.ID, HeaderSource: &e.Source, HeaderType: &e.Type, HeaderKey: &e.Key, HeaderTenantID: &e.TenantID,
		HeaderCorrelationID: &e.CorrelationID, HeaderCausationID: &e.CausationID, HeaderTraceParent: &e.TraceParent,
	} {
		value, err := url.PathUnescape(attrs[name])
		if err == nil {
			err = validText(value)
		}
		if err != nil {
			return Event{}, fmt.Errorf("%w: header %s: %w", ErrInvalid, name, err)
		}
		*to = value
	}
	for _, name := range []string{HeaderID, HeaderSource, HeaderType} {
		if attrs[name] == "" {
			return Event{}, fmt.Errorf("%w: no header %s", ErrInvalid, name)
		}
	}
	for name, to := range map[string]*int64{HeaderVersion: &e.Version, HeaderSeq: &e.Seq} {
		if attrs[name] == "" {
			continue
		}
		n, err := strconv.ParseInt(attrs[name], 10, 64)
		if err != nil || n < 0 {
			return Event{}, fmt.Errorf("%w: header %s is %.64q, not a number from 0", ErrInvalid, name, attrs[name])
		}
		*to = n
	}
	if t := attrs[HeaderTime]; t != "" {
		at, err := time.Parse(time.RFC3339Nano, t)
		if err != nil {
			return Event{}, fmt.Errorf("%w: header %s is %.64q, not RFC 3339", ErrInvalid, HeaderTime, t)
		}
		e.Time = at.UTC()
	}
	return e, nil
}

// escape percent-encodes what CloudEvents does not allow in a header as it is: all but printable ASCII, and space, quote
// and percent.
func escape(s string) string {
	plain := func(c byte) bool { return c > ' ' && c <= '~' && c != '"' && c != '%' }
	for i := range len(s) {
		if !plain(s[i]) {
			var b strings.Builder
			for i := range len(s) {
				if plain(s[i]) {
					b.WriteByte(s[i])
				} else {
					fmt.Fprintf(&b, "%%%02X", s[i])
				}
			}
			return b.String()
		}
	}
	return s
}
