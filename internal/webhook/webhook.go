// Package webhook is what every delivery to a URL of somebody else has in common.
package webhook

import (
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Host is the host of an https URL: its path and query may be secret, and are not told.
func Host(url string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(url, "https://"), "/")
	return host
}

// Deliver sends a request to a receiver, named so in errors; any answer of 2xx means that
// it has arrived.
func Deliver(c *http.Client, req *http.Request, name string) error {
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	_, _ = io.CopyN(io.Discard, res.Body, 64<<10) // so that the connection is used again
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s answered %s", name, res.Status)
	}
	return nil
}
