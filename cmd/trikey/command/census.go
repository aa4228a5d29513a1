package command

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/census"
)

func newKeyCensus(o *options) *cobra.Command {
	var sources []string
	var save, load, record string
	cmd := &cobra.Command{
		Use: "census", Short: "Count the ciphertexts in files by key and version; needs no service and no key", Args: cobra.NoArgs,
		Long: `Count the ciphertexts in files by key and version, from their headers.

Whatever the files' format is, the text form (tk1.…) is found anywhere in them, and so
are files that are one stream or one binary ciphertext. What is compressed, or encoded
once more, is not seen into: unpack it first.

With --record NAME the service is told, and refuses to destroy a key version that the
census finds in use, until a newer census of that name no longer does. NAME says what was
counted: messages, archive. --load takes a census that was saved on another host.`,
		Example: `  trikey key census --in /var/im/export --save census.json
  trikey key census --load census.json --record messages`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (load == "") == (len(sources) == 0) {
				return fault.New(fault.Usage, "give either --in or --load")
			}
			c, err := count(cmd, load, sources)
			if err != nil {
				return err
			}
			if save != "" {
				if err := c.Save(save); err != nil {
					return err
				}
			}
			if record != "" {
				var out v1.Batch[kms.SavedCensus]
				if err := o.admin(cmd.Context(), http.MethodPost, "censuses", kms.CensusOrder{Name: record, Census: c}, &out); err != nil {
					return err
				}
			}
			return o.print(cmd, c, func(w io.Writer) { printCensus(w, c) })
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&sources, "in", nil, "file or directory to read (repeatable)")
	f.StringVar(&load, "load", "", "file with a census that --save wrote, instead of --in")
	f.StringVar(&save, "save", "", "file to write the census to, as JSON")
	f.StringVar(&record, "record", "", "tell the service, under this name of what was counted")
	return cmd
}

// count reads files, or a census of them.
func count(cmd *cobra.Command, load string, sources []string) (*census.Census, error) {
	if load != "" {
		return census.Load(load)
	}
	c := &census.Census{Made: time.Now().UTC(), Sources: []string{}, Keys: []census.Use{}}
	bar := newProgress(cmd.ErrOrStderr(), sizeOf(sources))
	defer bar.clear()
	for _, source := range sources {
		if err := c.Count(cmd.Context(), source, bar.add); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func newKeyCensuses(o *options) *cobra.Command {
	var forget string
	cmd := &cobra.Command{
		Use: "censuses", Short: "List the censuses that keep key versions from being destroyed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out v1.Batch[kms.SavedCensus]
			method, body := http.MethodGet, any(nil)
			if forget != "" {
				method, body = http.MethodPost, kms.CensusOrder{Name: forget, Remove: true}
			}
			if err := o.admin(cmd.Context(), method, "censuses", body, &out); err != nil {
				return err
			}
			return o.print(cmd, out.Items, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tCOUNTED\tFILES\tKEY VERSIONS\tSAVED\tBY")
				for _, c := range out.Items {
					fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\n", c.Name, date(c.Made), c.Files, len(c.Keys), date(c.Saved), c.By)
				}
				_ = t.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&forget, "forget", "", "have the census of this name count no more")
	return cmd
}

// sizeOf adds up files, for the bar: what cannot be read is told of later.
func sizeOf(sources []string) (size int64) {
	for _, source := range sources {
		_ = filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil //nolint:nilerr // the count itself fails on it
			}
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				size += info.Size()
			}
			return nil
		})
	}
	return size
}

func printCensus(w io.Writer, c *census.Census) {
	fmt.Fprintf(w, "%d files, %d bytes\n", c.Files, c.Bytes)
	for _, u := range c.Keys {
		fmt.Fprintf(w, "  key %d version %d  %d ciphertexts, %d streams\n", u.Key, u.Version, u.Ciphertexts, u.Streams)
	}
	if c.Unreadable > 0 {
		fmt.Fprintf(w, "  %d begin as a ciphertext does but are none\n", c.Unreadable)
	}
}
