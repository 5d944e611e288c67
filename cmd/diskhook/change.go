// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// subject is what a verb changes.
type subject struct {
	schema string // of the verb's JSON
	key    string // of the name there
	word   string // before the name in a sentence
	name   string // "": all of them
}

// copiesOf are the local copies of a domain.
func copiesOf(domain string) subject {
	return subject{"diskhook.local-change/v1", "domain", "domain", domain}
}

func replicaSet(name string) subject {
	return subject{"diskhook.quorum-change/v1", "set", "replica set", name}
}

// change prints or does what a verb is about to do; act says how it ended. No
// steps is nothing to do.
func (p *program) change(f format, dryRun bool, of subject, steps []string, act func() (string, error)) error {
	ended := "nothing to do"
	if len(steps) > 0 && !dryRun {
		var err error
		if ended, err = act(); err != nil {
			return err
		}
	}
	switch {
	case f == inJSON:
		if err := p.printJSON(map[string]any{
			"schema": of.schema, of.key: of.name, "dry_run": dryRun, "changed": len(steps) > 0, "commands": orEmpty(steps),
		}); err != nil {
			return err
		}
	case len(steps) == 0 && of.name == "":
	case dryRun && len(steps) > 0:
		for _, line := range steps {
			fmt.Fprintln(p.stdout, harmless(line))
		}
	case of.name == "":
		fmt.Fprintf(p.stderr, "diskhook: %s\n", ended)
	default:
		fmt.Fprintf(p.stderr, "diskhook: %s %s: %s\n", of.word, harmless(of.name), ended)
	}
	if dryRun && len(steps) > 0 {
		return wouldChange()
	}
	return nil
}

// done is act for a verb that has no words of its own for how it ended.
func done(act func() error) func() (string, error) {
	return func() (string, error) { return "done", act() }
}
