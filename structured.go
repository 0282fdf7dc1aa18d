package oncebox

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
)

// structuredType is the media type of an event that is one JSON document, attributes and all: CloudEvents' structured mode, which
// other producers may send.
const structuredType = "application/cloudevents+json"

// binaryMode returns what m is in binary mode: m itself, unless it is in structured mode.
func binaryMode(m *message.Message) (*message.Message, error) {
	structured := false
	for name, value := range m.Metadata {
		if strings.EqualFold(name, HeaderContentType) {
			media, _, err := mime.ParseMediaType(value)
			structured = structured || err == nil && media == structuredType
		}
	}
	if !structured {
		return m, nil
	}
	b := message.NewMessage(m.UUID, nil)
	for name, value := range m.Metadata {
		if !strings.EqualFold(name, HeaderContentType) {
			b.Metadata[name] = value
		}
	}
	members, err := jsonMembers(m.Payload)
	if err != nil {
		return nil, fmt.Errorf("%w: the structured event: %w", ErrInvalid, err)
	}
	for name, raw := range members {
		switch name {
		case "data":
			b.Payload = message.Payload(raw)
			continue
		case "data_base64":
			var text string
			if err = json.Unmarshal(raw, &text); err == nil {
				b.Payload, err = base64.StdEncoding.DecodeString(text)
			}
			if err != nil || members["data"] != nil {
				return nil, fmt.Errorf("%w: the structured event's data_base64 is none, or stands beside data", ErrInvalid)
			}
			continue
		}
		header, value := "ce-"+name, string(raw) // a number or a boolean as it stands
		if raw[0] == '"' {
			if err := json.Unmarshal(raw, &value); err != nil {
				return nil, fmt.Errorf("%w: the structured event's %.64q: %w", ErrInvalid, name, err)
			}
			value = escape(value)
		}
		if name == "datacontenttype" {
			header = HeaderContentType
		}
		if _, there := b.Metadata[header]; there || raw[0] == '{' || raw[0] == '[' {
			return nil, fmt.Errorf("%w: the structured event's %.64q is also a header, or no attribute's value", ErrInvalid, name)
		}
		b.Metadata[header] = value
	}
	return b, nil
}

// jsonMembers are those of one JSON object, each of which it names once.
func jsonMembers(text []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is no JSON object")
	}
	members := make(map[string]json.RawMessage)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string)
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("it names %.64q twice", name)
		}
		members[name] = raw
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, err
	}
	if d.More() {
		return nil, errors.New("there is more behind it")
	}
	return members, nil
}
