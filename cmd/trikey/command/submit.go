package command

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/submit"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/harden"
	"github.com/trikey/trikey/internal/secret"
)

// submitFlags are the flags of card submit.
type submitFlags struct {
	to, caCert, card, pin, fingerprint, state string
	module                                    config.Module
}

func newCardSubmit(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "submit --to https://HOST:PORT --cacert FILE --module PATH",
		Short: "Send the share of a card in this computer to a machine that is elsewhere",
		Long: `Send the share of a card in this computer to a machine that is elsewhere.

The people at the machine run trikey machine unseal --remote, and read out the
fingerprint that it shows, over a line that they know. This command shows all but its
last four characters and asks for those: compare the rest. Then it asks for the PIN,
which stays on this computer, and sends the share, encrypted to that machine's key. A
share of another machine is not sent.

It needs no configuration. PIN tries are counted in the directory --state, by default
trikey in the user's configuration directory.`,
		Example: "  trikey card submit --to https://10.0.0.7:7448 --cacert ca.pem --module /usr/lib/softhsm/libsofthsm2.so",
		Args:    cobra.NoArgs,
	}
	addLastTry(cmd)
	var f submitFlags
	cmd.Flags().StringVar(&f.to, "to", "", "address of the machine (machine.custodians.listen), required")
	cmd.Flags().StringVar(&f.caCert, "cacert", "", "PEM file with the authority of the machine's certificate (default: the system's)")
	cmd.Flags().StringVar(&f.module.Module, "module", "", "the PKCS#11 library of the card, required")
	cmd.Flags().StringToStringVar(&f.module.Env, "module-env", nil, "K=V that the library wants in its environment (repeatable)")
	cmd.Flags().StringVar(&f.card, "card", "", "serial or label of the card, where several are inserted")
	cmd.Flags().StringVar(&f.pin, "pin-file", "", "file with the card's PIN, mode 0600")
	cmd.Flags().StringVar(&f.fingerprint, "fingerprint", "", "the whole fingerprint, where there is no terminal to ask for it")
	cmd.Flags().StringVar(&f.state, "state", "", "directory of the count of PIN tries")
	_ = cmd.MarkFlagRequired("to")
	_ = cmd.MarkFlagRequired("module")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		receipt, err := submitCard(cmd, f)
		if err != nil {
			return localised(cmd, err)
		}
		return o.print(cmd, receipt, func(w io.Writer) {
			say(cmd, w, "The share was taken: %d of %d cards are given.", receipt.Have, receipt.Need)
			if receipt.State == hsm.Open {
				say(cmd, w, "The machine is open.")
			}
		})
	}
	return cmd
}

func submitCard(cmd *cobra.Command, f submitFlags) (receipt hsm.Receipt, err error) {
	if err := harden.Apply(); err != nil {
		return receipt, err
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS13}
	if f.caCert != "" {
		if trust.RootCAs, err = poolOf(f.caCert); err != nil {
			return receipt, err
		}
	}
	machine, err := submit.Dial(f.to, trust)
	if err != nil {
		return receipt, err
	}
	defer machine.Close()
	window, err := machine.Window(cmd.Context())
	if err != nil {
		return receipt, err
	}
	say(cmd, cmd.ErrOrStderr(), "%s waits for cards: %d of %d are given.", f.to, window.Have, window.Need)
	fmt.Fprintf(cmd.ErrOrStderr(), "  machine      %s\n  split        %s\n", window.MachineID, window.SplitID)
	if err := confirmFingerprint(cmd, f.fingerprint, submit.Fingerprint(window)); err != nil {
		return receipt, err
	}
	reader, release, err := newCustodian(f.module, f.state)
	if err != nil {
		return receipt, err
	}
	defer func() { err = errors.Join(err, release()) }()
	card, err := oneCard(cmd.Context(), reader, f.card)
	if err != nil {
		return receipt, err
	}
	sealed, err := sealedShare(cmd, reader, card, f.pin, window)
	if err != nil {
		return receipt, err
	}
	return machine.Submit(cmd.Context(), hsm.Submission{Window: window.ID, Sealed: sealed})
}

// sealedShare reads the share that a window asks for off a card.
func sealedShare(cmd *cobra.Command, reader hsm.Reader, card hsm.CardInfo, pinFile string, w hsm.Window) (sealed []byte, err error) {
	err = withPIN(cmd, card, pinFile, func(ctx context.Context, pin *secret.Bytes) error {
		open, err := reader.Login(ctx, card.CardID, pin)
		if err != nil {
			return err
		}
		envelope, err := submit.Read(ctx, open, w)
		if err = errors.Join(err, open.Close()); err != nil {
			envelope.Wipe()
			return err
		}
		defer envelope.Wipe()
		sealed, err = submit.Seal(w, envelope)
		return err
	})
	return sealed, err
}

// confirmFingerprint has the custodian compare the fingerprint of the machine's key with
// what the people at the machine read out. The last group is not shown, so that it must
// come from them.
func confirmFingerprint(cmd *cobra.Command, given, actual string) error {
	if given != "" {
		if !submit.SameFingerprint(given, actual) {
			return fault.New(fault.FingerprintWrong, "the key that answers has the fingerprint %s, not %s; nothing was sent: "+
				"it is of an older window, or somebody stands between you and the machine", actual, given)
		}
		return nil
	}
	if !atTerminal() {
		return fault.New(fault.Usage, "there is no terminal to compare the fingerprint on; give --fingerprint, as the people at the machine read it out")
	}
	at := strings.LastIndexByte(actual, '-') + 1
	w := cmd.ErrOrStderr()
	fmt.Fprintf(w, "  fingerprint  %s????\n", actual[:at])
	say(cmd, w, "Have it read out by the people at the machine, and compare what is shown.")
	fmt.Fprint(w, text(cmd, "Type its last four characters: "))
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil {
		return fault.Wrap(fault.Usage, err, "the fingerprint was not confirmed; nothing was sent")
	}
	if typed := strings.TrimSpace(line); !submit.SameFingerprint(typed, actual[at:]) && !submit.SameFingerprint(typed, actual) {
		return fault.New(fault.FingerprintWrong, "%q is not how the fingerprint ends; nothing was sent: it is of an older window, "+
			"or somebody stands between you and the machine", typed)
	}
	return nil
}

// oneCard returns the card of that name, or the only one.
func oneCard(ctx context.Context, reader hsm.Reader, name string) (hsm.CardInfo, error) {
	if name != "" {
		return theCard(ctx, reader, name)
	}
	cards, err := reader.Cards(ctx)
	if err != nil {
		return hsm.CardInfo{}, err
	}
	switch len(cards) {
	case 0:
		return hsm.CardInfo{}, fault.New(fault.CardAbsent, "there is no card in a reader; insert it, and make sure of --module and --module-env")
	case 1:
		return cards[0], nil
	}
	var names []string
	for _, c := range inOrder(cards) {
		names = append(names, fmt.Sprintf("%q (serial %s)", c.Label, c.Serial))
	}
	return hsm.CardInfo{}, fault.New(fault.Usage, "several cards are inserted: %s; name one with --card", strings.Join(names, ", "))
}

// custodianDir is the directory of a custodian's count of PIN tries.
func custodianDir(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fault.Wrap(fault.Usage, err, "there is no directory for the count of PIN tries; name one with --state")
	}
	return filepath.Join(dir, "trikey"), nil
}
