package jsonhttp_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
)

type in struct {
	Name  string            `json:"name"`
	Items []struct{ N int } `json:"items"`
	Map   map[string]string `json:"map"`
}

func TestUnmarshalNamesTheField(t *testing.T) {
	for body, want := range map[string]string{
		`{"nam":1}`: "nam: unknown field", `{"name":1}`: "name: not", `{"items":[{"N":1},{"N":"x"}]}`: "items[1].N: not", `{"map":{"a":{}}}`: "map.a: not",
		`{"name":"","name":""}`: "name: given twice", `[]`: "the body: not", `{`: "ends too early", ``: "ends too early", `{"name":"\xff"}`: "byte",
		`{"name":""} x`: "byte", `nil`: "byte",
	} {
		var v in
		err := jsonhttp.Unmarshal([]byte(body), &v)
		if !errors.Is(err, fault.BadRequest) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", body, err, want)
		}
	}
}

func TestDepth(t *testing.T) {
	for n, deep := range map[int]bool{jsonhttp.MaxDepth: false, jsonhttp.MaxDepth + 1: true, 9000: true} {
		for _, body := range []string{
			strings.Repeat("[", n) + strings.Repeat("]", n), strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n),
			`["` + strings.Repeat(`\"[`, 50) + `",` + strings.Repeat("[", n-1) + strings.Repeat("]", n),
		} {
			var v any
			err := jsonhttp.Unmarshal([]byte(body), &v)
			if (err != nil) != deep {
				t.Errorf("depth %d: %.60s: %v", n, body, err)
			}
		}
	}
}

// What one end says, the other understands.
func TestBothEnds(t *testing.T) {
	s := httptest.NewServer(jsonhttp.Handle(100, func(_ *http.Request, v in) (in, error) {
		switch v.Name {
		case "fault":
			return v, fault.Wrap(fault.CardDamaged, io.EOF, "card %d", 3)
		case "busy":
			return v, fault.Later(fault.RateLimited, 1100*time.Millisecond, "wait")
		case "bug":
			return v, errors.New("internal secret text")
		}
		return v, nil
	}))
	defer s.Close()
	call := func(name string) (out in, err error) {
		err = jsonhttp.Do(t.Context(), s.Client(), http.MethodPost, s.URL, nil, in{Name: name}, &out)
		return out, err
	}
	if out, err := call("x"); err != nil || out.Name != "x" {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := call("fault"); !errors.Is(err, fault.CardDamaged) || !strings.Contains(err.Error(), "card 3: EOF") {
		t.Errorf("%v", err)
	}
	if _, err := call("busy"); !errors.Is(err, fault.RateLimited) || fault.RetryAfterOf(err) != 2*time.Second {
		t.Errorf("%v, after %s", err, fault.RetryAfterOf(err))
	}
	if _, err := call("bug"); !errors.Is(err, fault.Internal) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
	if _, err := call(strings.Repeat("x", 101)); !errors.Is(err, fault.TooLarge) {
		t.Errorf("%v", err)
	}
	// A body of unknown length is bounded as well.
	res, err := http.Post(s.URL, "application/json", io.MultiReader(strings.NewReader(strings.Repeat(" ", 101))))
	if err != nil || res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("%v, %v", res, err)
	}
	s.Close()
	if _, err := call("x"); !errors.Is(err, fault.Unavailable) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestReleaseWipes(t *testing.T) {
	b := jsonhttp.Buffer()
	b.WriteString("somebody's message")
	kept := b.Bytes()
	jsonhttp.Release(b)
	if bytes.Contains(kept, []byte("message")) {
		t.Error("a released buffer keeps what was in it")
	}
}

// Whatever comes, decoding a batch does not panic; and what it accepts says the same
// when it is written and read again.
func FuzzBatch(f *testing.F) {
	f.Add([]byte(`{"items":[{"key":7,"plaintext":"aGVsbG8=","context":{"a":"b"},"reference":"r"}]}`))
	f.Add([]byte(`{"items":[{"key":"chat","plaintext":null},5,{"key":-1}]}`))
	f.Add([]byte(`{"items":[{"key":4294967296}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var v, again v1.Batch[v1.EncryptItem]
		if err := jsonhttp.Unmarshal(raw, &v); err != nil {
			if !errors.Is(err, fault.BadRequest) {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		for _, item := range v.Items {
			if strings.ContainsFunc(string(item.Key), func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
				return // no name of a key
			}
		}
		written, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		if err := jsonhttp.Unmarshal(written, &again); err != nil || len(again.Items) != len(v.Items) {
			t.Fatalf("%q: %q: %v", raw, written, err)
		}
		for i, a := range again.Items {
			b := v.Items[i]
			if a.Key != b.Key || !bytes.Equal(a.Plaintext, b.Plaintext) || a.Reference != b.Reference || len(a.Context) != len(b.Context) {
				t.Errorf("%+v became %+v", b, a)
			}
		}
	})
}
