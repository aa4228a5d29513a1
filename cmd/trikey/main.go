// Command trikey is the crypto machine and key-management service of chat
// operators: the service, its machine, and the commands of those who run them.
package main

import (
	"os"

	"github.com/trikey/trikey/cmd/trikey/command"
)

func main() { os.Exit(command.Main(os.Args[1:])) }
