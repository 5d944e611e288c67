// SPDX-License-Identifier: Apache-2.0

package connectortest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"diskhook/storage/command"
)

// Install makes dir a place where each program is exe, which has to call Main
// by the name that it was started with.
func Install(dir, exe string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name := range tools() {
		if err := os.Symlink(exe, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Programs are the names of what Main can be.
func Programs() []string { return slices.Sorted(maps.Keys(tools())) }

// IsProgram says whether a process was started as one of the programs.
func IsProgram(argv0 string) bool {
	return slices.Contains(Programs(), filepath.Base(argv0))
}

// Main is a program as a process of its own, in the world at DISKHOOK_ROOT. It
// adds its command line to the file argv there.
func Main(argv []string) int {
	code, err := mainIn(os.Getenv("DISKHOOK_ROOT"), argv)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", argv[0], err)
		return 70 // EX_SOFTWARE, which no program that is posed as has
	}
	return code
}

func mainIn(dir string, argv []string) (int, error) {
	w, err := New(dir)
	if err != nil {
		return 0, err
	}
	s, err := w.storage()
	if err != nil {
		return 0, err
	}
	cmd := command.Cmd{Name: filepath.Base(argv[0]), Args: argv[1:]}
	log, err := os.OpenFile(w.at("argv"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintln(log, cmd.String())
	if err = errors.Join(err, log.Close()); err != nil {
		return 0, err
	}
	stdout, stderr, code := tools()[cmd.Name](w, &s, cmd)
	fmt.Fprint(os.Stdout, stdout)
	fmt.Fprint(os.Stderr, stderr)
	return code, w.broken
}
