package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

const pinFileHelp = `file with a card's PIN, mode 0600; give it once for each card. Which card a file is for is
said by a file beside it, FILE.card, with the card's serial or label; else by its own name, if that is a card's serial,
label, or the number at a label's end; else the n-th such file is for the n-th card, in order of labels, that is not given yet`

func addPINFiles(cmd *cobra.Command) *[]string {
	addLastTry(cmd)
	return cmd.Flags().StringArray("pin-file", nil, pinFileHelp)
}

// pinFile is a PIN file and the card that it is for.
type pinFile struct {
	path string
	card hsm.CardID
	err  error // why it is for none
}

// assign finds the card of each PIN file. A PIN is never tried on a card that it is
// not for, so nothing here tries anything.
func assign(paths []string, cards []hsm.CardInfo) []pinFile {
	cards = inOrder(cards)
	files := make([]pinFile, len(paths))
	claimed := map[string]bool{} // serials
	for i, path := range paths {
		files[i].path = path
		name, explicit, err := cardName(path)
		if err != nil {
			files[i].err = err
			continue
		}
		if c := named(cards, name, explicit); c != nil {
			files[i].card = c.CardID
			claimed[c.Serial] = true
			continue
		}
		if explicit {
			files[i].err = fault.New(fault.CardAbsent, "the card %s, which %s is for, is not in a reader; insert it", name, path)
		}
	}
	for i := range files {
		if files[i].err != nil || files[i].card.Serial != "" {
			continue
		}
		free := slices.IndexFunc(cards, func(c hsm.CardInfo) bool { return !claimed[c.Serial] && !c.Given })
		if free < 0 {
			files[i].err = fault.New(fault.CardAbsent, "there is no card in a reader for %s; insert it", files[i].path)
			continue
		}
		files[i].card = cards[free].CardID
		claimed[cards[free].Serial] = true
	}
	return files
}

// inOrder sorts cards by label: the order in which they are listed and asked for.
func inOrder(cards []hsm.CardInfo) []hsm.CardInfo {
	return slices.SortedFunc(slices.Values(cards), func(a, b hsm.CardInfo) int {
		return cmp.Or(cmp.Compare(a.Label, b.Label), cmp.Compare(a.Serial, b.Serial))
	})
}

// cardName returns what a PIN file says of its card, and whether it says so in so
// many words.
func cardName(path string) (name string, explicit bool, err error) {
	raw, err := os.ReadFile(path + ".card")
	if err == nil {
		return strings.TrimSpace(string(raw)), true, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		return strings.TrimSuffix(filepath.Base(path), ".pin"), false, nil
	}
	return "", false, fault.Wrap(fault.BadConfig, err, "the file that names the card")
}

func named(cards []hsm.CardInfo, name string, explicit bool) *hsm.CardInfo {
	for i, c := range cards {
		byNumber := !explicit && (strings.HasSuffix(c.Label, "-"+name) || strings.HasSuffix(c.Label, " "+name))
		if c.Serial == name || c.Label == name || byNumber {
			return &cards[i]
		}
	}
	return nil
}

// giveCard does something with a card and its PIN. The context carries the person's
// confirmation, where one was needed; enough says that no more cards are.
type giveCard func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (enough bool, err error)

// eachCard calls f with each card and its PIN: those of the PIN files, or, where none
// are given, those that are inserted while it asks for their PINs on the terminal.
// It goes on after a card that fails, and returns all failures. f says when enough
// cards were given.
func eachCard(cmd *cobra.Command, console hsm.Console, files []string, f giveCard) error {
	if len(files) == 0 {
		return askCards(cmd, console, f)
	}
	cards, err := console.Cards(cmd.Context())
	if err != nil {
		return err
	}
	var failed error
	for _, file := range assign(files, cards) {
		enough, err := givePIN(cmd, file, f)
		if err != nil {
			failed = errors.Join(failed, err)
		}
		if enough {
			return nil
		}
	}
	return failed
}

func givePIN(cmd *cobra.Command, file pinFile, f giveCard) (bool, error) {
	if file.err != nil {
		return false, file.err
	}
	pin, err := readSecretFile(file.path)
	if err != nil {
		return false, err
	}
	defer pin.Wipe()
	enough, err := f(confirmed(cmd, file.card.Serial), file.card, pin)
	if err != nil {
		err = fault.Wrap(fault.CodeOf(err), err, "%s", file.path)
	}
	return enough, err
}

// pollInterval is how often readers are looked at for a card. PKCS#11's own waiting
// for slot events does not see a second card in most readers.
const pollInterval = 400 * time.Millisecond

// askCards asks for the PIN of every card that is found in a reader, once each.
func askCards(cmd *cobra.Command, console hsm.Console, f giveCard) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return fault.New(fault.Usage, "there is no terminal to ask for PINs; give --pin-file once for each card")
	}
	w := cmd.ErrOrStderr()
	asked := map[string]bool{}
	waiting := false
	for {
		cards, err := console.Cards(cmd.Context())
		if err != nil {
			return err
		}
		cards = inOrder(cards)
		// A card that was pulled out and put in again is asked for again.
		maps.DeleteFunc(asked, func(key string, _ bool) bool {
			return !slices.ContainsFunc(cards, func(c hsm.CardInfo) bool { return c.Key() == key })
		})
		next := slices.IndexFunc(cards, func(c hsm.CardInfo) bool { return !asked[c.Key()] && !c.Given })
		if next < 0 {
			if !waiting {
				say(cmd, w, "Insert the next card. (Ctrl-C ends; cards given so far stay given.)")
				waiting = true
			}
			if err := sleep(cmd.Context(), pollInterval); err != nil {
				return err
			}
			continue
		}
		waiting = false
		enough, again, err := askCard(cmd, w, cards[next], f)
		if err != nil || enough {
			return err
		}
		asked[cards[next].Key()] = !again
	}
}

// askCard asks for one PIN. A card that is refused is told of; only the end of the
// terminal ends the asking. After a wrong PIN the person, and nobody else, may try
// again.
func askCard(cmd *cobra.Command, w io.Writer, card hsm.CardInfo, f giveCard) (enough, again bool, err error) {
	ctx, err := permit(cmd, w, card)
	if errors.Is(err, io.EOF) {
		return false, false, err
	}
	if err != nil {
		say(cmd, w, "  refused: %s", explain(cmd, err))
		return false, false, nil
	}
	pin, err := askSecret(w, text(cmd, "Card %q, serial %s%s. PIN (empty skips this card): ", card.Label, card.Serial, triesText(card)))
	if err != nil {
		return false, false, err
	}
	defer pin.Wipe()
	if pin.Len() == 0 {
		return false, false, nil
	}
	if enough, err = f(ctx, card.CardID, pin); err != nil {
		if cmd.Context().Err() != nil {
			return false, false, err
		}
		say(cmd, w, "  refused: %s", explain(cmd, err))
	}
	return enough, mayAskAgain(err), nil
}

// askSecret asks for a secret on the terminal, which does not show it.
func askSecret(w io.Writer, prompt string) (*secret.Bytes, error) {
	fmt.Fprint(w, prompt)
	raw, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(w)
	if err != nil {
		return nil, fault.Wrap(fault.Usage, err, "the PIN could not be read")
	}
	return secret.Move(raw)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
