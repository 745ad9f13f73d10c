package qspec_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "qspec.dev/qspec/v1" // registers the messages
)

// Each vector of ../golden (or of $QSPEC_GOLDEN) is read and written as bytes and as JSON; tools/golden_vectors.py says
// what has to come out.
func TestGoldenVectors(t *testing.T) {
	directory := os.Getenv("QSPEC_GOLDEN")
	if directory == "" {
		directory = filepath.Join("..", "golden")
	}
	paths, err := filepath.Glob(filepath.Join(directory, "*", "*.bin"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vectors in %s (%v)", directory, err)
	}
	for _, path := range paths {
		name := filepath.Base(filepath.Dir(path))
		vector := strings.TrimSuffix(filepath.Base(path), ".bin")
		t.Run(name+"/"+vector, func(t *testing.T) {
			wire := read(t, path)
			jsonText := read(t, strings.TrimSuffix(path, "bin")+"json")

			fromWire := newMessage(t, name)
			check(t, proto.Unmarshal(wire, fromWire))
			if written := marshal(t, fromWire); !bytes.Equal(written, wire) {
				t.Errorf("bytes differ:\n got %x\nwant %x", written, wire)
			}
			writtenJSON, err := protojson.Marshal(fromWire)
			check(t, err)
			if got, want := decode(t, writtenJSON), decode(t, jsonText); !reflect.DeepEqual(got, want) {
				t.Errorf("JSON differs:\n got %v\nwant %v", got, want)
			}

			fromJSON := newMessage(t, name)
			check(t, protojson.Unmarshal(jsonText, fromJSON))
			known := marshal(t, fromJSON)
			if unknown := strings.HasPrefix(vector, "unknown_"); !bytes.HasPrefix(wire, known) ||
				unknown == (len(known) == len(wire)) {
				t.Errorf("bytes from JSON differ:\n got %x\nwant %x", known, wire)
			}
		})
	}
}

func newMessage(t *testing.T, name string) proto.Message {
	t.Helper()
	messageType, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("qspec.v1." + name))
	check(t, err)
	return messageType.New().Interface()
}

func marshal(t *testing.T, message proto.Message) []byte {
	t.Helper()
	written, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	check(t, err)
	return inOrder(t, written)
}

// inOrder sorts the fields of a message by their numbers: Go writes those of a oneof last.
func inOrder(t *testing.T, message []byte) []byte {
	t.Helper()
	type field struct {
		number  protowire.Number
		content []byte
	}
	var fields []field
	for len(message) > 0 {
		number, _, length := protowire.ConsumeField(message)
		check(t, protowire.ParseError(length))
		fields = append(fields, field{number, message[:length]})
		message = message[length:]
	}
	sort.SliceStable(fields, func(i, j int) bool { return fields[i].number < fields[j].number })
	var sorted []byte
	for _, each := range fields {
		sorted = append(sorted, each.content...)
	}
	return sorted
}

func decode(t *testing.T, text []byte) any {
	t.Helper()
	var value any
	check(t, json.Unmarshal(text, &value))
	return value
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	check(t, err)
	return content
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
