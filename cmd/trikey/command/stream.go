package command

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/sdk"
)

// files are what a command reads and writes instead of its standard streams.
type files struct {
	in, out string

	source, part *os.File
}

// open puts the files in the place of the command's standard input and output. What
// is written goes to a file beside --out, which takes its name at the end.
func (f *files) open(cmd *cobra.Command) (err error) {
	if f.in != "" {
		if f.source, err = os.Open(f.in); err != nil {
			return fault.Wrap(fault.Usage, err, "--in")
		}
		cmd.SetIn(f.source)
	}
	if f.out != "" {
		// Mode 0600: it may be plaintext.
		if f.part, err = os.CreateTemp(filepath.Dir(f.out), "."+filepath.Base(f.out)+".part-*"); err != nil {
			return errors.Join(fault.Wrap(fault.Usage, err, "--out"), f.close(nil))
		}
		cmd.SetOut(f.part)
	}
	return nil
}

// close ends the files. Unless the command failed, --out has its content from now
// on; else it is as it was.
func (f *files) close(failed error) error {
	if f.source != nil {
		_ = f.source.Close()
	}
	if f.part == nil {
		return failed
	}
	if failed == nil {
		failed = f.part.Sync()
	}
	failed = errors.Join(failed, f.part.Close())
	if failed == nil {
		failed = os.Rename(f.part.Name(), f.out)
	}
	if failed != nil {
		_ = os.Remove(f.part.Name())
	}
	return failed
}

// beginsStream looks at the first byte of the command's input: no ciphertext in text or
// binary form begins as a stream does.
func beginsStream(cmd *cobra.Command) bool {
	in := bufio.NewReader(cmd.InOrStdin())
	size := inputSize(cmd)
	cmd.SetIn(&sized{in, size})
	first, err := in.Peek(1)
	return err == nil && first[0] == envelope.StreamVersion
}

// sized is an input with its length, 0 when that is not known.
type sized struct {
	io.Reader
	size int64
}

func inputSize(cmd *cobra.Command) int64 {
	switch in := cmd.InOrStdin().(type) {
	case *sized:
		return in.size
	case *os.File:
		if info, err := in.Stat(); err == nil && info.Mode().IsRegular() {
			return info.Size()
		}
	}
	return 0
}

// copyStream sends the command's input through the service to its output.
func copyStream(ctx context.Context, cmd *cobra.Command, r sdk.StreamRequest,
	open func(context.Context, sdk.StreamRequest, io.Reader) (io.ReadCloser, error),
) error {
	// Input and output differ by less than the bar shows.
	bar := newProgress(cmd.ErrOrStderr(), inputSize(cmd))
	defer bar.clear()
	result, err := open(ctx, r, cmd.InOrStdin())
	if err != nil {
		return err
	}
	defer func() { _ = result.Close() }()
	_, err = io.CopyBuffer(struct{ io.Writer }{cmd.OutOrStdout()}, &counted{result, bar}, make([]byte, envelope.SealedSegmentSize))
	return err
}

// counted shows on a bar what is read.
type counted struct {
	io.Reader
	bar *progress
}

// Read reads, and moves the bar.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.bar.add(int64(n))
	return n, err
}
