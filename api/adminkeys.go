package api

import (
	"context"
	"maps"
	"net/http"
	"strconv"

	"github.com/go-chi/chi/v5"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/epochs"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/policy"
)

// newKey is what a key shall be.
func newKey(in v1.NewKey) (n kms.NewKey, err error) {
	n = kms.NewKey{Index: in.Index, Name: in.Name, Exportable: in.Exportable, Published: in.Publish, PreActive: in.PreActive}
	if in.Purpose != "" {
		if n.Purpose, err = hsm.ParsePurpose(in.Purpose); err != nil {
			return n, err
		}
	}
	if in.Algorithm != "" {
		if n.Algorithm, err = alg.ByName(in.Algorithm); err != nil {
			return n, err
		}
	}
	return n, changeSettings(&n.Settings, in.KeySettings)
}

func (a admin) createKey(r *http.Request, in v1.NewKey) (v1.AdminKey, error) {
	n, err := newKey(in)
	if err != nil {
		return v1.AdminKey{}, err
	}
	return a.adminKey(a.service.CreateKey(r.Context(), actor(r), n))
}

func (a admin) createKeys(r *http.Request, in v1.NewKeys) (v1.NewKeysMade, error) {
	n, err := newKey(in.NewKey)
	if err != nil {
		return v1.NewKeysMade{}, err
	}
	made, err := a.service.CreateKeys(r.Context(), actor(r), n, in.Count)
	if err != nil {
		return v1.NewKeysMade{}, err
	}
	return v1.NewKeysMade{From: n.Index, To: n.Index + uint32(made-1), Made: made}, nil
}

func (a admin) changeKey(r *http.Request, in v1.KeySettings) (v1.AdminKey, error) {
	k, err := a.find(r)
	if err != nil {
		return v1.AdminKey{}, err
	}
	return a.adminKey(a.service.ChangeKey(r.Context(), actor(r), k.Index, func(s *kms.Settings) error { return changeSettings(s, in) }))
}

// changeSettings makes the changes that are given.
func changeSettings(s *kms.Settings, in v1.KeySettings) (err error) {
	if in.Description != nil {
		s.Description = *in.Description
	}
	if in.Owner != nil {
		s.Owner = *in.Owner
	}
	if in.RotateAfter != nil {
		s.RotateAfter = *in.RotateAfter
	}
	s.Labels = maps.Clone(s.Labels)
	for name, value := range in.Labels {
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		if s.Labels[name] = value; value == "" {
			delete(s.Labels, name)
		}
	}
	for _, p := range []struct {
		name string
		text *string
		into *life.Period
	}{{"rotate", in.Rotate, &s.Rotate}, {"retain", in.Retain, &s.Retain}} {
		if p.text == nil {
			continue
		}
		if *p.into = 0; *p.text == "" || *p.text == "0" {
			continue
		}
		if *p.into, err = life.ParsePeriod(*p.text); err != nil {
			return fault.New(fault.BadRequest, "%s: %v", p.name, err)
		}
	}
	if in.RequireContext != nil {
		strict := s.Context.Strict
		if s.Context, err = policy.ParseContextRule(*in.RequireContext); err != nil {
			return err
		}
		s.Context.Strict = strict
	}
	if in.StrictContext != nil {
		s.Context.Strict = *in.StrictContext
	}
	return nil
}

// find returns the key that the request's path names.
func (a admin) find(r *http.Request) (*kms.Key, error) {
	k, _, err := a.service.ReadKey(r.Context(), chi.URLParam(r, "key"))
	return k, err
}

// keyPage is how many keys a page of the list has.
const keyPage = 1000

func (a admin) listKeys(r *http.Request, _ jsonhttp.None) (v1.KeyPage, error) {
	from := uint64(0)
	if text := r.URL.Query().Get("from"); text != "" {
		var err error
		if from, err = strconv.ParseUint(text, 10, 32); err != nil {
			return v1.KeyPage{}, fault.New(fault.BadRequest, "from: %q is not a key index", text)
		}
	}
	keys, err := a.service.ListKeysFrom(uint32(from), keyPage+1)
	if err != nil {
		return v1.KeyPage{}, err
	}
	wrapped, err := a.service.Locked(keys...)
	out := v1.KeyPage{Items: make([]v1.AdminKey, 0, len(keys))}
	for i, k := range keys {
		if i == keyPage {
			out.Next = k.Index
			break
		}
		item, _ := adminKey(k, wrapped)
		item.Versions, item.Public = nil, nil
		out.Items = append(out.Items, item)
	}
	return out, err
}

func (a admin) showKey(r *http.Request, _ jsonhttp.None) (v1.AdminKey, error) {
	k, fresh, err := a.service.ReadKey(r.Context(), chi.URLParam(r, "key"))
	out, err := a.adminKey(k, err)
	out.Stale = !fresh
	return out, err
}

func (a admin) rotateKey(r *http.Request, _ jsonhttp.None) (v1.AdminKey, error) {
	k, err := a.find(r)
	if err != nil {
		return v1.AdminKey{}, err
	}
	return a.adminKey(a.service.RotateKey(r.Context(), actor(r), k.Index))
}

// keyOrder is an order about a key's life.
type keyOrder func(ctx context.Context, s *kms.Service, index uint32, in v1.KeyOrder) (*kms.Key, error)

// about is an order that needs no more than the key.
func about(f func(*kms.Service, context.Context, kms.Actor, uint32) (*kms.Key, error)) keyOrder {
	return func(ctx context.Context, s *kms.Service, index uint32, in v1.KeyOrder) (*kms.Key, error) {
		if in != (v1.KeyOrder{}) {
			return nil, fault.New(fault.BadRequest, "this order is about the whole key and has no fields")
		}
		return f(s, ctx, actorOf(ctx), index)
	}
}

// keyOrders are the orders, by the verb that ends their path.
var keyOrders = map[string]keyOrder{
	"suspend":  about((*kms.Service).SuspendKey),
	"resume":   about((*kms.Service).ResumeKey),
	"activate": about((*kms.Service).ActivateKey),
	"release":  about((*kms.Service).ReleaseKey),
	"deactivate": func(ctx context.Context, s *kms.Service, index uint32, in v1.KeyOrder) (*kms.Key, error) {
		return s.DeactivateKey(ctx, actorOf(ctx), index, in.Version)
	},
	"compromise": func(ctx context.Context, s *kms.Service, index uint32, in v1.KeyOrder) (*kms.Key, error) {
		return s.CompromiseKey(ctx, actorOf(ctx), index, in.Version)
	},
	"schedule-destroy": func(ctx context.Context, s *kms.Service, index uint32, in v1.KeyOrder) (*kms.Key, error) {
		if in.Days == 0 {
			in.Days = kms.DefaultDestroyDays
		}
		return s.OrderDestroy(ctx, actorOf(ctx), index, kms.DestroyOrder{Version: in.Version, Days: in.Days, EvenIfUsed: in.EvenIfUsed})
	},
	"cancel-destroy": func(ctx context.Context, s *kms.Service, index uint32, in v1.KeyOrder) (*kms.Key, error) {
		return s.CancelDestroy(ctx, actorOf(ctx), index, in.Version)
	},
	"hold": func(ctx context.Context, s *kms.Service, index uint32, in v1.KeyOrder) (*kms.Key, error) {
		return s.HoldKey(ctx, actorOf(ctx), index, in.Why)
	},
}

func (a admin) order(f keyOrder) func(*http.Request, v1.KeyOrder) (v1.AdminKey, error) {
	return func(r *http.Request, in v1.KeyOrder) (v1.AdminKey, error) {
		k, err := a.find(r)
		if err != nil {
			return v1.AdminKey{}, err
		}
		return a.adminKey(f(r.Context(), a.service, k.Index, in))
	}
}

func (a admin) certificates(r *http.Request, _ jsonhttp.None) (v1.Batch[kms.Certificate], error) {
	k, err := a.find(r)
	if err != nil {
		return v1.Batch[kms.Certificate]{}, err
	}
	all, err := a.service.Certificates(r.Context(), k.Index)
	return v1.Batch[kms.Certificate]{Items: all}, err
}

func (a admin) reservations(*http.Request, jsonhttp.None) (v1.Batch[v1.Reservation], error) {
	all, err := a.service.Reservations()
	out := v1.Batch[v1.Reservation]{Items: []v1.Reservation{}}
	for _, r := range all {
		out.Items = append(out.Items, v1.Reservation{Range: policy.Ranges{r.Range}.String(), App: r.App})
	}
	return out, err
}

func (a admin) reserve(r *http.Request, in v1.Reservation) (v1.Batch[v1.Reservation], error) {
	var none v1.Batch[v1.Reservation]
	parsed, err := policy.ParseRanges(in.Range)
	switch {
	case err != nil:
		return none, err
	case len(parsed) != 1:
		return none, fault.New(fault.BadRequest, "range: %q is not one range, like 100-199", in.Range)
	case in.Remove:
		err = a.service.Unreserve(r.Context(), actor(r), parsed[0])
	default:
		err = a.service.Reserve(r.Context(), actor(r), kms.Reservation{Range: parsed[0], App: in.App})
	}
	if err != nil {
		return none, err
	}
	return a.reservations(r, jsonhttp.None{})
}

func (a admin) adminKey(k *kms.Key, err error) (v1.AdminKey, error) {
	if err != nil {
		return v1.AdminKey{}, err
	}
	wrapped, err := a.service.Locked(k)
	if err != nil {
		return v1.AdminKey{}, err
	}
	return adminKey(k, wrapped)
}

// adminKey is a key as administrators see it, with its wrapped keys as they are stored.
func adminKey(k *kms.Key, wrapped map[epochs.Leaf]string) (v1.AdminKey, error) {
	v := k.Current()
	out := v1.AdminKey{
		Index: k.Index, Name: k.Name, Version: v.Version, Algorithm: k.Algorithm.String(), State: string(k.State()),
		KCV: v.KCV, Wrapped: wrapped[epochs.Leaf{Index: k.Index, Version: v.Version}], Created: k.Created, Rotates: k.Rotates(),
		Purpose: k.Purpose().String(), Exportable: k.Exportable(), Published: k.Published,
	}
	if newest := k.Newest(); newest.Version > 1 {
		out.Rotated = newest.Created
	}
	if s := k.Settings; s != nil {
		out.Description, out.Labels, out.Owner, out.RotateAfter = s.Description, s.Labels, s.Owner, s.RotateAfter
		out.RequireContext, out.StrictContext = s.Context.String(), s.Context.Strict
		if s.Rotate != 0 {
			out.Rotate = s.Rotate.String()
		}
		if s.Retain != 0 {
			out.Retain = s.Retain.String()
		}
	}
	if k.DestroyAt != nil {
		out.DestroyAt = *k.DestroyAt
	}
	if h := k.Hold; h != nil && h.Released.IsZero() {
		out.Hold = &v1.KeyHold{Since: h.Since, By: string(h.By), Why: h.Why}
	}
	for i := range k.Versions {
		out.Versions = append(out.Versions, adminVersion(k, &k.Versions[i], wrapped[epochs.Leaf{Index: k.Index, Version: k.Versions[i].Version}]))
	}
	for _, u := range k.Use() {
		for i := range out.Versions {
			if v := &out.Versions[i]; v.Version == u.Version {
				v.Seals, v.Opens, v.LastUsed = u.Seals, u.Opens, u.Last
			}
		}
		if u.Last.After(out.LastUsed) {
			out.LastUsed = u.Last
		}
	}
	for _, s := range k.Opens() {
		out.Opens = append(out.Opens, v1.Span{From: s.From, Until: s.Until})
	}
	var err error
	out.Public, err = publicKeys(k)
	return out, err
}

func adminVersion(k *kms.Key, v *kms.Version, wrapped string) v1.AdminKeyVersion {
	out := v1.AdminKeyVersion{
		Version: v.Version, State: string(v.State), KCV: v.KCV, Wrapped: wrapped, Created: v.Created,
		SealedFrom: v.Activated(), DestroyAt: k.DestroysAt(v), Imported: v.Imported,
	}
	if m := v.Marks; m != nil {
		out.SealedUntil, out.Compromised, out.Destroyed, out.Exported = m.Ended, m.Compromised, m.Destroyed, m.Exported
	}
	return out
}
