package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/policy"
)

func TestContextRule(t *testing.T) {
	const text = "app,chat_type:enum(dm|group),conversation,revision:int"
	rule, err := policy.ParseContextRule(" app:string, chat_type:enum(dm|group),conversation, revision:int")
	if err != nil || rule.String() != text {
		t.Fatalf("%s, %v", rule, err)
	}
	with := func(pairs ...string) envelope.Context {
		c := envelope.Context{"app": "im", "chat_type": "dm", "conversation": "c-1", "revision": "0"}
		for i := 0; i < len(pairs); i += 2 {
			if c[pairs[i]] = pairs[i+1]; pairs[i+1] == "-" {
				delete(c, pairs[i])
			}
		}
		return c
	}
	for _, good := range []envelope.Context{with(), with("chat_type", "group"), with("revision", "-3"), with("revision", "9223372036854775807"), with("more", "x")} {
		if err := rule.Check(good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range []envelope.Context{
		nil,
		{},
		with("app", "-"), with("app", ""), with("chat_type", "-"), with("chat_type", "room"), with("chat_type", ""), with("chat_type", "DM"),
		with("conversation", "-"), with("revision", ""), with("revision", "1.0"), with("revision", "01"), with("revision", "+1"), with("revision", "-0"),
		with("revision", "9223372036854775808"), with("revision", "zero"),
	} {
		err := rule.Check(bad)
		if !errors.Is(err, fault.ContextRequired) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	rule.Strict = true
	if err := rule.Check(with()); err != nil {
		t.Error(err)
	}
	if err := rule.Check(with("secret-name", "secret-value")); !errors.Is(err, fault.ContextRequired) || strings.Contains(err.Error(), "secret") {
		t.Errorf("a field too many: %v", err)
	}
	none := policy.ContextRule{}
	if none.Check(nil) != nil || none.Check(with()) != nil {
		t.Error("no rule asks for something")
	}
}

func TestParseContextRule(t *testing.T) {
	for _, good := range []string{"", "a", "a,b:int", "_x.y-z", "t:enum(单聊|群聊)"} {
		if r, err := policy.ParseContextRule(good); err != nil || r.String() != good {
			t.Errorf("%q: %s, %v", good, r, err)
		}
	}
	var many []string
	for i := range 33 {
		many = append(many, fmt.Sprint("f", i))
	}
	for _, bad := range []string{
		"a,", ",", "a b", "a:", "a:float", "a:string(x)", "a:int(1|2)", "a:enum", "a:enum()", "a:enum(x|)", "a:enum(x| y)", "a:enum(x", "a,a",
		":int", "-a", strings.Repeat("a", 129), "a:enum(" + strings.Repeat("x|", 64) + "x)", strings.Join(many, ","),
	} {
		if r, err := policy.ParseContextRule(bad); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q: %s, %v", bad, r, err)
		}
	}
}
