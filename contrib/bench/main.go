// SPDX-License-Identifier: Apache-2.0

// Command bench measures what diskhook promises about speed, each time beside
// what it is compared with, in one run: `make bench`.
//
// It prints ratios, never a verdict: a busy machine makes all times worse, the
// ratios much less. Programs are started in turns, so that whatever else the
// machine does hits all of them alike.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
)

// part is one of the measurements; it prints its own lines.
type part struct {
	name, what string
	run        func(context.Context, io.Writer) error
}

var parts = []part{
	{"hook", "hook call for a domain that is not bound", hookCalls},
	{"rewrite", "rewrite of a domain XML, in process", rewrites},
	{"copy", "the copy engine beside qemu-img, nbdcopy and cp, on this machine's disk", copies},
	{"ready", "start of a four-disk domain whose copies are ready, in the test guest", inGuest("guest-ready")},
	{"fill", "fill of a thin volume from a qcow2 chain, in the test guest", inGuest("guest-fill")},
	{"template", "copies of twenty domains with one base, beside one, on this machine's disk", templatesOnFiles},
	{"thin-template", "the same on thin volumes, in the test guest", inGuest("guest-template")},
	{"quorum", "disks of three replicas beside a plain file, on this machine's disk", quorums},
	{"thin-metadata", "dm-thin metadata beside thin-provisioning-tools, on this machine's disk", thinMetadata},
	{"thin-volumes", "verbs on volumes of a thin cluster as they grow, on this machine's disk, without a kernel", thinVolumes},
	{"thin-pause", "the same verbs, and the pause of another volume, with the kernel's dm-thin, in the test guest", inGuest("guest-thin")},
	{"volumes", "attach and detach of a managed volume beside os-brick's way, with 500 known, on this machine", managedVolumes},
	{"repository", "images of a storage repository beside plain qemu-img and a walk over its directories, on this machine's disk", repositories},
}

// guestParts are what the test guest runs of them.
var guestParts = map[string]func(context.Context, io.Writer) error{
	"guest-ready":    readyInGuest,
	"guest-fill":     fillInGuest,
	"guest-template": thinInGuest,
	"guest-thin":     thinVolumesInGuest,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures the named parts, or all of them. A part that fails does not
// keep the others from being measured.
func run(ctx context.Context, out io.Writer, names []string) error {
	if len(names) == 1 && guestParts[names[0]] != nil {
		return guestParts[names[0]](ctx, out)
	}
	if len(names) > 3 && names[0] == copyChild {
		return copyEngine(ctx, names[1:])
	}
	if len(names) > 2 && names[0] == thinChild {
		return thinMetadataChild(ctx, names[1:])
	}
	for _, name := range names {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("no part is called %q; there are %s", name, strings.Join(partNames(), ", "))
		}
	}
	var failed []error
	for _, p := range parts {
		if len(names) > 0 && !slices.Contains(names, p.name) {
			continue
		}
		fmt.Fprintf(out, "\n%s: %s\n", p.name, p.what)
		if err := p.run(ctx, out); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	return errors.Join(failed...)
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}
