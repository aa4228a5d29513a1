package audit

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/secret"
)

// console records every step of a ceremony before it is done.
type console struct {
	hsm.Console
	log *Log
}

// Watch returns the console with every step recorded: what is asked for before it is
// done, and how it ended. A step that cannot be recorded is refused, but for sealing and
// aborting: those make the machine safer, and are done all the same.
func Watch(c hsm.Console, l *Log) hsm.Console { return console{c, l} }

// step records a step around f.
func step[Out any](ctx context.Context, c console, op string, details map[string]string, f func() (Out, error)) (Out, error) {
	m, err := c.log.Begin(ctx, Event{Kind: Console, Op: op, Details: details})
	if err != nil {
		var none Out
		return none, err
	}
	out, err := f()
	// What was done stays done; that its end could not be recorded is in the log, and
	// blocks what comes next.
	_ = m.End(Outcome(err), ending(out))
	return out, err
}

// safer records a step that is done even if it cannot be recorded.
func (c console) safer(ctx context.Context, op string, f func() error) error {
	m, err := c.log.Begin(ctx, Event{Kind: Console, Op: op})
	if err != nil {
		c.log.cfg.Log.Error("a step at the machine's console is done, but not recorded", "op", op, "by", ActorOf(ctx), "error", err)
		return f()
	}
	err = f()
	_ = m.End(Outcome(err), nil)
	return err
}

// ending is what the outcome of a step tells besides its code.
func ending(out any) map[string]string {
	switch out := out.(type) {
	case hsm.Status:
		if out.State == "" {
			return nil
		}
		return map[string]string{"state": string(out.State), "have": strconv.Itoa(out.Have), "need": strconv.Itoa(out.Need)}
	case hsm.Progress:
		if out.Kind == "" {
			return nil
		}
		return map[string]string{"ceremony": out.Ceremony.String(), "kind": string(out.Kind), "step": string(out.Step)}
	case hsm.Report:
		if out.Kind == "" {
			return nil
		}
		return map[string]string{
			"ceremony": out.Ceremony.String(), "kind": string(out.Kind), "kcv": out.KCV, "generation": fmt.Sprint(out.Generation),
			"split": out.SplitID.String(), "people": strings.Join(out.People, ", "),
		}
	}
	return endingJoin(out)
}

func ofCard(id hsm.CardID) map[string]string {
	return map[string]string{"serial": id.Serial, "label": id.Label}
}

// Present is that of hsm.Console.
func (c console) Present(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (hsm.Status, error) {
	return step(ctx, c, "present", ofCard(card), func() (hsm.Status, error) { return c.Console.Present(ctx, card, pin) })
}

// Inspect is that of hsm.Console.
func (c console) Inspect(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (hsm.CardReport, error) {
	return step(ctx, c, "inspect", ofCard(card), func() (hsm.CardReport, error) { return c.Console.Inspect(ctx, card, pin) })
}

// Begin is that of hsm.Console.
func (c console) Begin(ctx context.Context, plan hsm.Plan) (hsm.Progress, error) {
	details := map[string]string{"kind": string(plan.Kind)}
	for name, value := range map[string]string{
		"shares": number(plan.Shares), "threshold": number(plan.Threshold),
		"lost": strings.Join(plan.Lost, ", "), "people": strings.Join(plan.People, ", "),
	} {
		if value != "" {
			details[name] = value
		}
	}
	if plan.Resume {
		details["resume"] = "true"
	}
	return step(ctx, c, "begin", details, func() (hsm.Progress, error) { return c.Console.Begin(ctx, plan) })
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// Gather is that of hsm.Console.
func (c console) Gather(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (hsm.Progress, error) {
	return step(ctx, c, "gather", ofCard(card), func() (hsm.Progress, error) { return c.Console.Gather(ctx, card, pin) })
}

// Deal is that of hsm.Console.
func (c console) Deal(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (hsm.Progress, error) {
	return step(ctx, c, "deal", ofCard(card), func() (hsm.Progress, error) { return c.Console.Deal(ctx, card, pin) })
}

// Verify is that of hsm.Console.
func (c console) Verify(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (hsm.Progress, error) {
	return step(ctx, c, "verify", ofCard(card), func() (hsm.Progress, error) { return c.Console.Verify(ctx, card, pin) })
}

// Commit is that of hsm.Console.
func (c console) Commit(ctx context.Context, kcv string) (hsm.Report, error) {
	return step(ctx, c, "commit", nil, func() (hsm.Report, error) { return c.Console.Commit(ctx, kcv) })
}

// Abort is that of hsm.Console.
func (c console) Abort(ctx context.Context) error {
	return c.safer(ctx, "abort", func() error { return c.Console.Abort(ctx) })
}

// Seal is that of hsm.Console. A checkpoint follows.
func (c console) Seal(ctx context.Context) error {
	err := c.safer(ctx, "seal", func() error { return c.Console.Seal(ctx) })
	c.log.Checkpoint()
	return err
}

// Format is that of hsm.Console.
func (c console) Format(ctx context.Context, card hsm.CardID, pin *secret.Bytes, force string) (hsm.FormatReport, error) {
	return step(ctx, c, "format", ofCard(card), func() (hsm.FormatReport, error) { return c.Console.Format(ctx, card, pin, force) })
}

// Initialise is that of hsm.Console.
func (c console) Initialise(ctx context.Context, card hsm.CardID, soPIN, pin *secret.Bytes) (hsm.CardID, error) {
	return step(ctx, c, "initialise", ofCard(card), func() (hsm.CardID, error) { return c.Console.Initialise(ctx, card, soPIN, pin) })
}

// ChangePIN is that of hsm.Console.
func (c console) ChangePIN(ctx context.Context, card hsm.CardID, old, fresh *secret.Bytes) error {
	_, err := step(ctx, c, "change-pin", ofCard(card), func() (any, error) { return nil, c.Console.ChangePIN(ctx, card, old, fresh) })
	return err
}

// OpenWindow is that of hsm.Console.
func (c console) OpenWindow(ctx context.Context) (hsm.Window, error) {
	return step(ctx, c, "open-window", nil, func() (hsm.Window, error) { return c.Console.OpenWindow(ctx) })
}

// CloseWindow is that of hsm.Console.
func (c console) CloseWindow(ctx context.Context, id hsm.ID) error {
	return c.safer(ctx, "close-window", func() error { return c.Console.CloseWindow(ctx, id) })
}

// submissions records what custodians who are elsewhere submit.
type submissions struct {
	hsm.Submissions
	log *Log
}

// WatchSubmissions returns the submissions with each recorded that is for an open window.
func WatchSubmissions(s hsm.Submissions, l *Log) hsm.Submissions { return submissions{s, l} }

// Submit is that of hsm.Submissions.
func (s submissions) Submit(ctx context.Context, in hsm.Submission) (hsm.Receipt, error) {
	if w, err := s.Window(ctx); err != nil || w.ID != in.Window {
		return s.Submissions.Submit(ctx, in) // it is refused: whoever calls must not fill the log
	}
	m, err := s.log.Begin(ctx, Event{Kind: Console, Op: "submit", Actor: "custodian", Details: map[string]string{"window": in.Window.String()}})
	if err != nil {
		return hsm.Receipt{}, err
	}
	r, err := s.Submissions.Submit(ctx, in)
	var details map[string]string
	if err == nil {
		details = map[string]string{"state": string(r.State), "have": strconv.Itoa(r.Have), "need": strconv.Itoa(r.Need)}
	}
	_ = m.End(Outcome(err), details) // what was done stays done
	return r, err
}
