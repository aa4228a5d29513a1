package p11

import (
	"context"
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/pintry"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// application is what Trikey's data objects carry as CKA_APPLICATION.
const application = "trikey\x00"

// Reader is every slot of some modules. A module is initialised only while it is
// needed: that is how a library that looks for tokens once, as SoftHSM does,
// notices a card that was inserted later.
type Reader struct {
	modules []ModuleConfig
	tries   pintry.Counter
	turn    chan struct{} // holds one token: who has it may have modules open
}

var _ hsm.Reader = (*Reader)(nil)

// ReaderConfig is what a reader needs.
type ReaderConfig struct {
	Modules []ModuleConfig
	Tries   pintry.Counter // nil counts for as long as the reader lives
}

// NewReader returns the reader of these modules. What Check says of them it says when
// they are used.
func NewReader(cfg ReaderConfig) *Reader {
	if cfg.Tries == nil {
		cfg.Tries = pintry.InMemory()
	}
	return &Reader{modules: cfg.Modules, tries: cfg.Tries, turn: make(chan struct{}, 1)}
}

// take waits until no card is open. release undoes it.
func (r *Reader) take(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Reader) release() { <-r.turn }

// Cards lists the tokens that are inserted now, those without a token in them
// left out.
func (r *Reader) Cards(ctx context.Context) ([]hsm.CardInfo, error) {
	if err := r.take(ctx); err != nil {
		return nil, err
	}
	defer r.release()
	cards := []hsm.CardInfo{}
	for _, cfg := range r.modules {
		m, err := openModule(cfg)
		if err != nil {
			return nil, err
		}
		list, err := m.tokens()
		if err = errors.Join(err, m.close()); err != nil {
			return nil, err
		}
		for _, t := range list {
			if t.info.Initialised {
				t.info.PINTries = r.tries.Used(t.info.CardID)
				cards = append(cards, t.info)
			}
		}
	}
	return cards, nil
}

// Login opens a card. An identity without a module means any module, without a
// label any label.
func (r *Reader) Login(ctx context.Context, id hsm.CardID, pin *secret.Bytes) (hsm.Card, error) {
	if err := r.take(ctx); err != nil {
		return nil, err
	}
	problem := fault.New(fault.CardAbsent, "no reader is configured for the card %s", describe(id))
	for _, cfg := range r.modules {
		if id.Module != "" && id.Module != cfg.Path {
			continue
		}
		c, err := r.loginTo(ctx, cfg, id, pin)
		if err == nil {
			return c, nil
		}
		if problem = err; !errors.Is(err, fault.CardAbsent) {
			break // a PIN is tried on one card only
		}
	}
	r.release()
	return nil, problem
}

func (r *Reader) loginTo(ctx context.Context, cfg ModuleConfig, id hsm.CardID, pin *secret.Bytes) (hsm.Card, error) {
	m, err := openModule(cfg)
	if err != nil {
		return nil, err
	}
	t, err := m.find(id)
	if err == nil {
		var s *session
		if s, err = m.login(t, pin, fault.ModuleFault, r.counted(ctx)); err == nil {
			c := &card{reader: r, m: m, s: s}
			if cfg.Form == FormRSA {
				return &rsaCard{c, cfg, t.info.Serial}, nil
			}
			return c, nil
		}
	}
	return nil, errors.Join(err, m.close())
}

// card is a token that is logged in to. Until it is closed its reader is taken.
type card struct {
	reader *Reader
	m      *module
	s      *session
}

func dataObject() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
	}
}

// Objects returns the value of every private data object that could be a share.
func (c *card) Objects(ctx context.Context) (values []*secret.Bytes, err error) {
	err = c.each(ctx, func(_ pkcs11.ObjectHandle, value *secret.Bytes) (keep bool, err error) {
		values = append(values, value)
		return true, nil
	})
	return values, err
}

// each calls f with every data object, and wipes what f does not keep.
func (c *card) each(ctx context.Context, f func(o pkcs11.ObjectHandle, value *secret.Bytes) (keep bool, err error)) error {
	handles, err := c.s.objects(dataObject()...)
	if err != nil {
		return err
	}
	for _, o := range handles {
		if err := ctx.Err(); err != nil {
			return err
		}
		raw, err := c.s.attribute(o, pkcs11.CKA_VALUE)
		if errors.Is(err, fault.ModuleFault) {
			err = fault.Wrap(fault.CardDamaged, err, "an object on the card cannot be read: the card is damaged; use another card, and replace this one")
		}
		if err != nil {
			return err
		}
		if len(raw) > hsm.MaxEnvelope {
			clear(raw)
			continue
		}
		value, err := secret.Move(raw)
		if err != nil {
			return err
		}
		keep, err := f(o, value)
		if !keep {
			value.Wipe()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Store writes a private data object that cannot be changed in place.
func (c *card) Store(_ context.Context, label string, value *secret.Bytes) error {
	return value.Use(func(v []byte) error {
		attributes := append(dataObject(),
			pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false),
			pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, application),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
			pkcs11.NewAttribute(pkcs11.CKA_VALUE, v),
		)
		return c.s.m.call(fault.CardFull, "write the share to the card", func(p *pkcs11.Ctx) error {
			_, err := p.CreateObject(c.s.handle, attributes)
			return err
		})
	})
}

// Remove deletes the data objects that hold exactly this value.
func (c *card) Remove(ctx context.Context, value *secret.Bytes) error {
	return c.each(ctx, func(o pkcs11.ObjectHandle, v *secret.Bytes) (bool, error) {
		if !v.Equal(value) {
			return false, nil
		}
		return false, c.s.call("remove a share from the card", func(p *pkcs11.Ctx) error { return p.DestroyObject(c.s.handle, o) })
	})
}

// Close logs out and lets go of the reader.
func (c *card) Close() error {
	defer c.reader.release()
	c.s.logout()
	return c.m.close()
}
