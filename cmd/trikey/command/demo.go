package command

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/console"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/internal/unixsock"
	"github.com/trikey/trikey/sdk"
)

func newDemo() *cobra.Command {
	var dir string
	var setupOnly, keepServing bool
	var basePort int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole main job in a throw-away directory",
		Long: `Show the whole main job on real parts: SoftHSM key cards and chip, a key store on
disk, HTTPS. Everything happens in a directory of its own, which is removed at the
end; no token or configuration of yours is touched.

--setup-only makes a directory to keep instead, for trikey serve and trikey machine
unseal. --serve does that too, if DIR is new, and then runs the service, unsealed, in
the foreground.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to make (default: a temporary one)")
	cmd.Flags().BoolVar(&setupOnly, "setup-only", false, "make the directory, keep it, and end")
	cmd.Flags().BoolVar(&keepServing, "serve", false, "make the directory if it is new, keep it, run the service and unseal it")
	cmd.Flags().IntVar(&basePort, "base-port", 0, "api on this port, grpc, admin and ops on the first, second and fourth after it (default: free ports)")
	cmd.MarkFlagsMutuallyExclusive("setup-only", "serve")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case (setupOnly || keepServing) && dir == "":
			return fault.New(fault.Usage, "--setup-only and --serve need --dir")
		case basePort < 0 || basePort > 65531:
			return fault.New(fault.Usage, "--base-port is 1 to 65531")
		case setupOnly:
			return demoSetup(cmd, dir, basePort)
		case keepServing:
			return demoServe(cmd, dir, basePort)
		}
		return demo(cmd, dir, basePort)
	}
	return cmd
}

func demoSetup(cmd *cobra.Command, dir string, basePort int) error {
	d, err := setUp(cmd.Context(), dir, basePort)
	if err != nil {
		return err
	}
	yaml := d.path("trikey.yaml")
	fmt.Fprintf(cmd.OutOrStdout(), `%s is ready: three key cards (PINs in pins/), a chip, certificates, an initialised machine.

  trikey serve --config %[2]s
  trikey machine unseal --config %[2]s --pin-file %[3]s --pin-file %[4]s --pin-file %[5]s
`, d.dir, yaml, d.path("pins", "1"), d.path("pins", "2"), d.path("pins", "3"))
	return nil
}

// story tells what the demo does.
type story struct {
	w    io.Writer
	step int
}

func (s *story) tell(format string, args ...any) {
	s.step++
	fmt.Fprintf(s.w, "%2d. %s\n", s.step, fmt.Sprintf(format, args...))
}

func (s *story) detail(format string, args ...any) {
	fmt.Fprintf(s.w, "    %s\n", fmt.Sprintf(format, args...))
}

// refused reports that something was refused as it must be; anything else ends the
// demo.
func (s *story) refused(what string, err error, want fault.Code) error {
	if fault.CodeOf(err) != want {
		return fmt.Errorf("%s: expected the refusal %q, got: %w", what, string(want), err)
	}
	s.detail("%s: refused (%s)", what, string(want))
	return nil
}

func demo(cmd *cobra.Command, dir string, basePort int) (err error) {
	ctx := cmd.Context()
	if dir == "" {
		if dir, err = os.MkdirTemp("", "trikey-demo-"); err != nil {
			return err
		}
	} else if _, statErr := os.Stat(dir); statErr == nil {
		return fault.New(fault.Conflict, "%s exists; the demo removes its directory at the end: name one that does not", dir)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &story{w: cmd.OutOrStdout()}

	d, err := setUp(ctx, dir, basePort)
	if err != nil {
		return err
	}
	s.tell("Made three key cards and a chip (SoftHSM tokens), an authority and a certificate in %s", d.dir)
	s.tell("Initialised the machine: a root key, dealt to the cards as shares, each read back and verified")
	server, err := startServer(ctx, d.path("trikey.yaml"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	if err := server.waitFor(ctx, d.cfg, false); err != nil {
		return err
	}
	s.tell("Started the service; sealed, it answers only that it is")
	if err := demoUnseal(ctx, s, d); err != nil {
		return err
	}
	if err := demoCalls(ctx, s, d); err != nil {
		return err
	}
	if err := demoBackup(ctx, s, d); err != nil {
		return err
	}
	if err := console.Dial(d.cfg.MachineSocket()).Seal(ctx); err != nil {
		return err
	}
	s.tell("Sealed the machine, stopped the service and removed the directory. That was all of it.")
	return nil
}

// demoUnseal gives the cards, a forged one among them.
func demoUnseal(ctx context.Context, s *story, d *demoDir) error {
	c := console.Dial(d.cfg.MachineSocket())
	s.tell("Unsealing with the key cards")
	forged, pin, err := forgeCard(ctx, d)
	if err != nil {
		return err
	}
	for i := range d.ids {
		if i == 1 {
			_, err := c.Present(ctx, forged, pin)
			if err := s.refused("a forged card", err, fault.CardMismatch); err != nil {
				return err
			}
		}
		status, err := c.Present(ctx, d.ids[i], d.pins[i])
		if err != nil {
			return err
		}
		s.detail("card %d accepted: %d of %d, %s", i+1, status.Have, status.Need, status.State)
	}
	return nil
}

// forgeCard makes a card with the machine's own manifest and a share that somebody
// made up.
func forgeCard(ctx context.Context, d *demoDir) (hsm.CardID, *secret.Bytes, error) {
	raw, err := os.ReadFile(filepath.Join(d.cfg.Data, "machine.json"))
	if err != nil {
		return hsm.CardID{}, nil, err
	}
	var record hsm.Record
	if err := json.Unmarshal(raw, &record); err != nil {
		return hsm.CardID{}, nil, err
	}
	value, err := secret.Random(hsm.ShareSize)
	if err != nil {
		return hsm.CardID{}, nil, err
	}
	envelope, err := (&hsm.Share{Manifest: record.Manifest, Index: 2, Value: value}).Marshal()
	if err != nil {
		return hsm.CardID{}, nil, err
	}
	module := p11.ModuleConfig{Path: d.cfg.Machine.Cards[0].Module, Env: d.cfg.Machine.Cards[0].Env}
	id, pin, err := newDemoToken(module, "forged", d.path("pins", "forged"))
	if err != nil {
		return id, nil, err
	}
	card, err := p11.NewReader(p11.ReaderConfig{Modules: []p11.ModuleConfig{module}}).Login(ctx, id, pin)
	if err != nil {
		return id, nil, err
	}
	return id, pin, errors.Join(card.Store(ctx, "trikey share 2", envelope), card.Close())
}

// demoCalls makes keys and an app, and does what an IM service does.
func demoCalls(ctx context.Context, s *story, d *demoDir) error {
	admin := func(path string, in, out any) error {
		return jsonhttp.Do(ctx, unixsock.Client(d.cfg.AdminSocket()), http.MethodPost, "http://admin/admin/v1/"+path, nil, in, out)
	}
	s.tell("Made business keys; only their wrapped form ever leaves the machine")
	for _, in := range []v1.NewKey{{Index: 7, Name: "chat", Algorithm: "aes-256-gcm"}, {Index: 8, Name: "chat-sm4", Algorithm: "sm4-gcm"}} {
		var k v1.AdminKey
		if err := admin("keys", in, &k); err != nil {
			return err
		}
		s.detail("key %d %q %s, check value %s, %.28s…", k.Index, k.Name, k.Algorithm, k.KCV, k.Wrapped)
	}
	var app v1.Credentials
	if err := admin("apps", v1.NewApp{
		Name: "im", AllowIP: []string{"127.0.0.1/32"}, Grants: []string{"keys=1-99;ops=encrypt,decrypt,reencrypt-from,reencrypt-to"},
	}, &app); err != nil {
		return err
	}
	s.tell("Made the app %q (%s), which may call from 127.0.0.1 only", app.Name, app.AppKey)
	client, err := sdk.New(sdk.Config{
		Addresses: []string{"https://" + d.cfg.API.Listen}, AppKey: app.AppKey, AppSecret: app.AppSecret, CAFile: d.cfg.CA,
	})
	if err != nil {
		return err
	}
	defer client.Close()

	const text = "三把钥匙 / three keys"
	here, there := sdk.Context{"app": "im", "conversation": "c-1"}, sdk.Context{"app": "im", "conversation": "c-2"}
	sealed, err := client.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: []byte(text), Context: here})
	if err != nil {
		return err
	}
	s.tell("Encrypted %q with key 7 for conversation c-1, over HTTPS", text)
	s.detail("%.64s…", sealed.Ciphertext)
	opened, err := client.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: here})
	if err != nil {
		return err
	}
	s.tell("Decrypted it: %q", opened.Plaintext)
	moved, err := client.ReEncrypt(ctx, sdk.ReEncryptRequest{
		Ciphertext: sealed.Ciphertext, Context: here, To: sdk.Target{Key: sdk.Index(8), Context: &there},
	})
	if err != nil {
		return err
	}
	s.tell("Re-encrypted it from %s to %s and to conversation c-2, inside the machine", sealed.Algorithm, moved.Algorithm)
	if opened, err = client.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: moved.Ciphertext, Context: there}); err != nil || string(opened.Plaintext) != text {
		return fmt.Errorf("the re-encrypted message opened as %q: %w", opened.Plaintext, err)
	}
	s.detail("it opens there: %q", opened.Plaintext)

	s.tell("What must not work")
	_, err = client.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: there})
	if err := s.refused("the first ciphertext, moved to conversation c-2", err, fault.DecryptFailed); err != nil {
		return err
	}
	_, err = client.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(100), Plaintext: []byte(text)})
	if err := s.refused("a key that the app has no grant for", err, fault.Forbidden); err != nil {
		return err
	}
	return s.refused("a call from 127.0.0.2", fromElsewhere(ctx, d, app), fault.IPNotAllowed)
}

// demoBackup makes a backup and a copy of the destruction keys, and has both opened.
func demoBackup(ctx context.Context, s *story, d *demoDir) error {
	o := &options{config: d.path("trikey.yaml")}
	parts := map[string][]byte{}
	for _, part := range []string{"create", "epochs"} {
		answer, err := o.stream(ctx, part, nil)
		if err != nil {
			return err
		}
		parts[part], err = io.ReadAll(answer)
		if err := errors.Join(err, answer.Close()); err != nil {
			return err
		}
	}
	out, err := o.drill(ctx, parts["epochs"], bytes.NewReader(parts["create"]))
	if err != nil {
		return err
	}
	s.tell("Made a backup (%d bytes, sealed) and the copy of the destruction keys that it needs", len(parts["create"]))
	s.detail("restored into a throw-away directory: %d keys, %d versions open", out.Keys, out.Opened)
	return nil
}

// fromElsewhere calls with good credentials from an address that is not on the
// whitelist.
func fromElsewhere(ctx context.Context, d *demoDir, app v1.Credentials) error {
	tlsConfig, err := tlsConfigOf(d.cfg)
	if err != nil {
		return err
	}
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	c := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: tlsConfig}}
	defer c.CloseIdleConnections()
	header := http.Header{}
	r := http.Request{Header: header}
	r.SetBasicAuth(app.AppKey, app.AppSecret)
	return jsonhttp.Do(ctx, c, http.MethodGet, "https://"+d.cfg.API.Listen+"/v1/keys/7", header, nil, nil)
}

// demoServe runs the service in a kept directory, unsealed.
func demoServe(cmd *cobra.Command, dir string, basePort int) error {
	ctx := cmd.Context()
	yaml := filepath.Join(dir, "trikey.yaml")
	if _, err := os.Stat(yaml); errors.Is(err, os.ErrNotExist) {
		if _, err := setUp(ctx, dir, basePort); err != nil {
			return err
		}
	}
	o := &options{config: yaml, output: "table"}
	cfg, err := o.load(nil)
	if err != nil {
		return err
	}
	server, err := startServer(ctx, yaml)
	if err != nil {
		return err
	}
	err = server.waitFor(ctx, cfg, false)
	if err == nil {
		err = demoOpen(cmd, o, cfg, dir)
	}
	if err == nil {
		select {
		case err = <-server.exited:
			if err == nil && ctx.Err() != nil { // Ctrl-C reaches both
				return nil
			}
			return fmt.Errorf("the service ended (%w):\n%s", cmp.Or(err, errEnded), server.output)
		case <-ctx.Done():
		}
	}
	return errors.Join(err, server.stop())
}

var errEnded = errors.New("nobody has asked for it here")

// demoOpen unseals, makes a key and an app where there are none, and prints what to
// try.
func demoOpen(cmd *cobra.Command, o *options, cfg *config.Config, dir string) error {
	var files []string
	for i := range demoCards {
		files = append(files, filepath.Join(dir, "pins", strconv.Itoa(i+1)))
	}
	if err := o.unseal(cmd, console.Dial(cfg.MachineSocket()), files); err != nil {
		return err
	}
	ctx := cmd.Context()
	secretFile, keyFile := filepath.Join(dir, "app.secret"), filepath.Join(dir, "app.key")
	if _, err := os.Stat(secretFile); errors.Is(err, os.ErrNotExist) {
		var k v1.AdminKey
		if err := o.admin(ctx, http.MethodPost, "keys", v1.NewKey{Index: 7, Name: "chat"}, &k); err != nil {
			return err
		}
		var app v1.Credentials
		if err := o.admin(ctx, http.MethodPost, "apps", v1.NewApp{
			Name: "im", AllowIP: []string{"127.0.0.0/8", "::1"}, Grants: []string{"keys=1-99;ops=encrypt,decrypt,reencrypt"},
		}, &app); err != nil {
			return err
		}
		if err := errors.Join(os.WriteFile(secretFile, []byte(app.AppSecret+"\n"), 0o600), os.WriteFile(keyFile, []byte(app.AppKey+"\n"), 0o600)); err != nil {
			return err
		}
	}
	fmt.Fprintf(cmd.OutOrStdout(), `
The service is open at https://%[1]s, with key 7 and an app that may use it. Try, in another terminal:

  curl --cacert %[2]s/ca.pem -u "$(cat %[2]s/app.key):$(cat %[2]s/app.secret)" \
    https://%[1]s/v1/keys/7/encrypt -d '{"plaintext":"aGVsbG8=","context":{"conversation":"c-1"}}'
  curl http://%[3]s/readyz

  bin/trikey key list --config %[2]s/trikey.yaml
  bin/trikey machine status --config %[2]s/trikey.yaml
  bin/trikey backup create --out backup.tkb --config %[2]s/trikey.yaml

Ctrl-C ends it; %[2]s stays for the next time.
`, cfg.API.Listen, dir, cfg.Ops.Listen)
	return nil
}
