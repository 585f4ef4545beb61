// Command devcluster is a real Kubernetes in one binary, for one machine; see README.md.
package main

import (
	"os"

	"llmops.dev/devcluster/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
