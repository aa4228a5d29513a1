package budget_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/budget"
)

var noon = time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)

func parse(t *testing.T, text string) budget.Budget {
	t.Helper()
	b, err := budget.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	for _, text := range []string{"none", "items=5/day", "items=5/day,conversations=6/day,age=30d,old=7/day,field=room", "age=2d"} {
		if got := parse(t, text).String(); got != text {
			t.Errorf("%s became %s", text, got)
		}
	}
	if got := parse(t, "conversations=5").String(); got != "conversations=5/day" {
		t.Error(got)
	}
	for _, text := range []string{"", "items", "items=0", "items=-1/day", "items=5/hour", "conversations=1000001", "old=5", "field=x", "age=5", "age=-1d", "items=5;age=3d"} {
		if b, err := budget.Parse(text); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q is the budget %v, %v", text, b, err)
		}
	}
}

func TestItems(t *testing.T) {
	m, b := budget.NewMeters(), parse(t, "items=3/day")
	for range 3 {
		if why := m.Take("im", b, budget.Opening{}, noon); why != budget.Within {
			t.Fatal(why)
		}
	}
	if why := m.Take("im", b, budget.Opening{}, noon); why != budget.ItemsSpent {
		t.Errorf("the fourth: %q", why)
	}
	if why := m.Take("other", b, budget.Opening{}, noon); why != budget.Within {
		t.Errorf("another app: %q", why)
	}
	if s := m.Spent("im", noon); s.Items != 3 {
		t.Errorf("%+v", s)
	}
	if why := m.Take("im", b, budget.Opening{}, noon.Add(12*time.Hour)); why != budget.Within {
		t.Errorf("the next day: %q", why)
	}
	if s := m.Spent("im", noon.AddDate(0, 0, 2)); s != (budget.Spent{}) {
		t.Errorf("the day after: %+v", s)
	}
}

func TestConversations(t *testing.T) {
	m, b := budget.NewMeters(), parse(t, "conversations=100/day")
	for range 50 {
		for i := range 100 {
			if why := m.Take("im", b, budget.Opening{Conversation: fmt.Sprint(i)}, noon); why != budget.Within {
				t.Fatal(why)
			}
		}
	}
	if why := m.Take("im", b, budget.Opening{Conversation: "100"}, noon); why != budget.ConversationSpent {
		t.Errorf("one more: %q", why)
	}
	if why := m.Take("im", b, budget.Opening{Conversation: "7"}, noon); why != budget.Within {
		t.Errorf("one of them: %q", why)
	}
	m.Forget("im")
	if why := m.Take("im", b, budget.Opening{Conversation: "100"}, noon); why != budget.Within {
		t.Errorf("reopened: %q", why)
	}
}

func TestAge(t *testing.T) {
	m, b := budget.NewMeters(), parse(t, "age=30d,old=2/day")
	for _, until := range []time.Time{{}, noon, noon.AddDate(0, 0, -30)} {
		if why := m.Take("im", b, budget.Opening{SealedUntil: until}, noon); why != budget.Within {
			t.Errorf("sealed until %s: %q", until, why)
		}
	}
	old := budget.Opening{SealedUntil: noon.AddDate(0, 0, -31)}
	for want := range 2 {
		if s := m.Spent("im", noon); s.Old != want {
			t.Errorf("%+v, want %d old", s, want)
		}
		if why := m.Take("im", b, old, noon); why != budget.Within {
			t.Error(why)
		}
	}
	if why := m.Take("im", b, old, noon); why != budget.AgeSpent {
		t.Errorf("the third that is old: %q", why)
	}
}

func BenchmarkTake(b *testing.B) {
	m, all := budget.NewMeters(), budget.Budget{Items: 1e9, Conversations: 1e6}
	b.ReportAllocs()
	for b.Loop() {
		m.Take("im", all, budget.Opening{Conversation: "c-4711"}, noon)
	}
}
