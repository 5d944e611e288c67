// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// subject is what a verb changes.
type subject struct {
	schema string     // of the verb's JSON
	key    string     // of the name there
	word   string     // before the name in a sentence
	name   string     // "": all of them
	result func() any // what came of it, for JSON; may be nil
}

// copiesOf are the local copies of a domain.
func copiesOf(domain string) subject {
	return subject{schema: "diskhook.local-change/v1", key: "domain", word: "domain", name: domain}
}

func replicaSet(name string) subject {
	return subject{schema: "diskhook.quorum-change/v1", key: "set", word: "replica set", name: name}
}

func managedVolume(id string) subject {
	return subject{schema: "diskhook.volume-change/v1", key: "volume", word: "volume", name: id}
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
		change := map[string]any{
			"schema": of.schema, of.key: of.name, "dry_run": dryRun, "changed": len(steps) > 0, "commands": orEmpty(steps),
		}
		if of.result != nil && len(steps) > 0 && !dryRun {
			change["result"] = of.result()
		}
		if err := p.printJSON(change); err != nil {
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
