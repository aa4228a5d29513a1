package api_test

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/trikey/trikey/api/v1"
)

// The answers that are written by hand are what encoding the wire types gives.
func TestBatchAnswersAreTheWireTypes(t *testing.T) {
	c := newCaller(t)
	post := func(path, body string, into any) {
		t.Helper()
		w := c.post(path, []byte(body))
		d := json.NewDecoder(w.Body)
		d.DisallowUnknownFields()
		raw := w.Body.String()
		if err := d.Decode(into); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%d %s: %v", w.Code, raw, err)
		}
		again, err := json.Marshal(into)
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if json.Unmarshal([]byte(raw), &a) != nil || json.Unmarshal(again, &b) != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("answered\n%s\nthe wire types say\n%s", raw, again)
		}
	}
	const reference = `"reference":"quote \" backslash \\ line \n 中文 \u2028"`
	var sealed v1.Batch[v1.SealedItem]
	post("/v1/batch/encrypt", `{"items":[{"key":7,"plaintext":"",`+reference+`},{"key":"no \" such","plaintext":"",`+reference+`},{"key":7,"plaintext":"aGk="}]}`, &sealed)
	if len(sealed.Items) != 3 || sealed.Items[1].Error == nil || !strings.Contains(sealed.Items[1].Reference, "中文") {
		t.Fatalf("%+v", sealed)
	}
	var opened v1.Batch[v1.OpenedItem]
	post("/v1/batch/decrypt", `{"items":[{"ciphertext":"`+sealed.Items[0].Ciphertext+`"},{"ciphertext":"x",`+reference+`},{"ciphertext":"`+sealed.Items[2].Ciphertext+`"}]}`, &opened)
	if opened.Items[0].Plaintext == nil || opened.Items[1].Error == nil || string(*opened.Items[2].Plaintext) != "hi" {
		t.Errorf("%+v", opened)
	}
	post("/v1/batch/encrypt", `{"items":[]}`, &sealed)
	post("/v1/batch/reencrypt", `{"items":[{"ciphertext":"x"}]}`, &sealed)
}
