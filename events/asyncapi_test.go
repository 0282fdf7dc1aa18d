package events_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oncebox/oncebox/events"
	"github.com/oncebox/oncebox/internal/contract"
)

// payloads are the Go types of all events, by the names that the document has for them.
var payloads = map[string]events.Payload{
	"ChargeRequested": events.ChargeRequested{}, "OrderCancelled": events.OrderCancelled{},
	"ChargeSucceeded": events.ChargeSucceeded{}, "ChargeDeclined": events.ChargeDeclined{}, "ChargeRefunded": events.ChargeRefunded{},
}

func document(t *testing.T) contract.Document {
	t.Helper()
	text, err := os.ReadFile("asyncapi.yaml")
	must(t, err)
	d, err := contract.Parse(text)
	must(t, err)
	return d
}

func TestTheDocumentHasEachTypeAndNoOther(t *testing.T) {
	d := document(t)
	if v := d.At("asyncapi"); v != "3.0.0" {
		t.Errorf("asyncapi is %v", v)
	}
	if broken := d.Broken(); len(broken) > 0 {
		t.Errorf("references that lead nowhere: %v", broken)
	}
	var types []string
	for name, p := range payloads {
		types = append(types, p.Type())
		channel := strings.ToLower(name[:1]) + name[1:]
		if address := d.At("channels", channel, "address"); address != p.Type() {
			t.Errorf("the channel %s has the address %v, the type is %s", channel, address, p.Type())
		}
		if message := d.At("channels", channel, "messages", channel); !reflect.DeepEqual(message, d.At("components", "messages", name)) ||
			d.At("components", "messages", name, "name") != p.Type() {
			t.Errorf("the channel %s has the message %v", channel, message)
		}
		owner, other := events.OrdersStream, "billing"
		if source, _, _ := strings.Cut(p.Type(), "."); source == "billing" {
			owner, other = events.BillingStream, "orders"
		}
		for operation, action := range map[string]string{
			strings.ToLower(owner) + "Sends" + name: "send", other + "Receives" + name: "receive",
		} {
			if d.At("operations", operation, "action") != action || !reflect.DeepEqual(d.At("operations", operation, "channel"), d.At("channels", channel)) {
				t.Errorf("the operation %s is %v", operation, d.At("operations", operation))
			}
		}
		if text, _ := d.At("channels", channel, "description").(string); !strings.Contains(text, owner) {
			t.Errorf("the channel %s is %q", channel, text)
		}
	}
	slices.Sort(types)
	if declared := declaredTypes(t); !slices.Equal(types, declared) {
		t.Errorf("this test knows the types %v, the package has %v", types, declared)
	}
	for part, want := range map[string]int{"channels": len(payloads), "operations": 2 * len(payloads)} {
		if got := d.Map(part); len(got) != want {
			t.Errorf("%d %s, want %d: %v", len(got), part, want, slices.Sorted(maps.Keys(got)))
		}
	}
	if got := slices.Sorted(maps.Keys(d.Map("components", "messages"))); !slices.Equal(got, slices.Sorted(maps.Keys(payloads))) {
		t.Errorf("the messages are %v", got)
	}
}

// declaredTypes are the values of the package's constants named Type….
func declaredTypes(t *testing.T) (values []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "events.go", nil, 0)
	must(t, err)
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "Type") {
			value, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			must(t, err)
			values = append(values, value)
		}
		return true
	})
	slices.Sort(values)
	return values
}

// Each Go type has the members of its schema, of its types, all of them required, and no other.
func TestTheGoTypesAreTheSchemas(t *testing.T) {
	d := document(t)
	kinds := map[reflect.Kind]string{reflect.String: "string", reflect.Int64: "integer"}
	for name, p := range payloads {
		want := make(map[string]string)
		for member := range d.Map("components", "schemas", name, "properties") {
			want[member], _ = d.At("components", "schemas", name, "properties", member, "type").(string)
		}
		got := make(map[string]string)
		var required []any
		for f := range reflect.TypeOf(p).Fields() {
			member := f.Tag.Get("json") // an option behind a comma is none of our members'
			got[member] = kinds[f.Type.Kind()]
			required = append(required, member)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s has the members %v, its schema %v", name, got, want)
		}
		if r := d.At("components", "schemas", name, "required"); !reflect.DeepEqual(r, required) {
			t.Errorf("%s requires %v, want %v", name, r, required)
		}
		if d.At("components", "schemas", name, "additionalProperties") != nil {
			t.Errorf("%s is closed: nothing could be added to it", name)
		}
	}
}

func TestTheWireFormsAreAsTheDocumentHasThem(t *testing.T) {
	d := document(t)
	files, err := filepath.Glob("testdata/*.golden")
	must(t, err)
	if len(files) != len(payloads) {
		t.Errorf("%d golden files, want %d", len(files), len(payloads))
	}
	byType := make(map[string]string)
	for name, p := range payloads {
		byType[p.Type()] = name
	}
	for _, file := range files {
		golden, err := os.ReadFile(file)
		must(t, err)
		name := byType[strings.TrimSuffix(filepath.Base(file), ".golden")]
		m := unwire(t, golden)
		headers, err := json.Marshal(m.Metadata)
		must(t, err)
		message := func(part string) any { return d.At("components", "messages", name, part) }
		for _, wrong := range slices.Concat(d.Check(message("headers"), headers), d.Check(message("payload"), m.Payload)) {
			t.Errorf("%s: %s", file, wrong)
		}
		// And the document would know it if it were otherwise.
		broken := bytes.Replace(m.Payload, []byte(`"amount":10000`), []byte(`"amount":-1`), 1)
		if len(d.Check(message("payload"), broken)) != 1 {
			t.Errorf("%s: a negative amount passes", file)
		}
		m.Metadata["ce-type"] = "orders.charge.requested.v2"
		headers, err = json.Marshal(m.Metadata)
		must(t, err)
		if len(d.Check(message("headers"), headers)) != 1 {
			t.Errorf("%s: another type passes", file)
		}
	}
}
