package audit

import (
	"context"
	"strconv"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/secret"
)

// RequestJoin is that of hsm.Console.
func (c console) RequestJoin(ctx context.Context) (hsm.JoinRequest, error) {
	return step(ctx, c, "request-join", nil, func() (hsm.JoinRequest, error) { return c.Console.RequestJoin(ctx) })
}

// ApproveJoin is that of hsm.Console. The root is given away only after the event of the
// approval that completes them is on the disk.
func (c console) ApproveJoin(ctx context.Context, r hsm.JoinRequest, confirm string, card hsm.CardID, pin *secret.Bytes) (hsm.JoinProgress, error) {
	details := ofCard(card)
	details["request"], details["machine"], details["region"] = r.ID.String(), hsm.Fingerprint(r.PublicKey), r.Region
	details["expires"] = r.Expires.UTC().Format(time.RFC3339)
	p, err := step(ctx, c, "approve-join", details, func() (hsm.JoinProgress, error) { return c.Console.ApproveJoin(ctx, r, confirm, card, pin) })
	if p.Grant != nil {
		c.log.Checkpoint()
	}
	return p, err
}

// Join is that of hsm.Console. A checkpoint follows.
func (c console) Join(ctx context.Context, g hsm.JoinGrant, peer string) (hsm.Status, error) {
	details := map[string]string{"request": g.Request.String(), "peer": peer, "kcv": g.Record.KCV, "split": g.Record.SplitID.String()}
	s, err := step(ctx, c, "join", details, func() (hsm.Status, error) { return c.Console.Join(ctx, g, peer) })
	c.log.Checkpoint()
	return s, err
}

// endingJoin is what the outcome of a step tells besides its code.
func endingJoin(out any) map[string]string {
	switch out := out.(type) {
	case hsm.JoinRequest:
		if len(out.PublicKey) == 0 {
			return nil
		}
		return map[string]string{"request": out.ID.String(), "expires": out.Expires.Format(time.RFC3339)}
	case hsm.JoinProgress:
		if out.Need == 0 {
			return nil
		}
		return map[string]string{"have": strconv.Itoa(out.Have), "need": strconv.Itoa(out.Need), "granted": strconv.FormatBool(out.Grant != nil)}
	}
	return nil
}
