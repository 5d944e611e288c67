// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"

	"diskhook/hooks/domains"
	"diskhook/storage/failure"
)

// version is set by the linker.
var version = "unknown"

const defaultURI = "qemu:///system"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if slices.Equal(args, []string{"--version"}) {
		fmt.Fprintf(stdout, "diskhook-domain %s\n", version)
		return 0
	}
	uri, verb, err := parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "diskhook-domain: %v\nusage: diskhook-domain [--connect URI] VERB <request.json\n", err)
		return 2
	}
	if verb == domains.VerbWatch {
		if err := watch(uri, stdin, stdout); err != nil {
			_ = json.NewEncoder(stdout).Encode(report(err))
			return 1
		}
		return 0
	}
	answer, err := serve(uri, verb, stdin)
	if err != nil {
		_ = json.NewEncoder(stdout).Encode(report(err))
		return 1
	}
	if err := json.NewEncoder(stdout).Encode(answer); err != nil {
		return 1
	}
	return 0
}

func parse(args []string) (uri, verb string, err error) {
	uri = defaultURI
	if len(args) >= 2 && args[0] == "--connect" {
		uri, args = args[1], args[2:]
	}
	if len(args) != 1 || strings.HasPrefix(args[0], "-") {
		return "", "", failure.New(failure.Usage, "name one verb")
	}
	return uri, args[0], nil
}

// maxRequest is a domain's XML and what JSON makes of it.
const maxRequest = 64 << 20

func serve(uri, verb string, stdin io.Reader) (any, error) {
	act, known := verbs()[verb]
	if !known {
		return nil, failure.New(failure.Usage, "diskhook-domain: no verb %q", verb)
	}
	request, err := io.ReadAll(io.LimitReader(stdin, maxRequest))
	if err != nil {
		return nil, fmt.Errorf("diskhook-domain: request: %w", err)
	}
	conn, err := libvirt.NewConnect(uri)
	if err != nil {
		return nil, connectError(uri, err)
	}
	defer conn.Close()
	return act(conn, request)
}

func report(err error) domains.Failure {
	var f domains.Failure
	f.Error.Message = failure.OneLine(err.Error())
	f.Error.Hint = failure.HintOf(err)
	if k := failure.KindOf(err); k != nil {
		f.Error.Code = k.Code
	}
	return f
}
