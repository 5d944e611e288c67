// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

func rewriteCommand(p *program) *cli.Command {
	return &cli.Command{
		Name: "rewrite", Usage: "bind disks in a domain's XML; a filter from standard input to standard output",
		ArgsUsage: "[FILE]",
		Description: "Without flags the rules of the configuration bind. Nothing but the XML is read (and for a disk\n" +
			"that becomes a volume, a set or an image, what is known of that): no libvirt. XML that nothing\n" +
			"binds is printed as it is, byte for byte.",
		Flags: []cli.Flag{
			bindFlag(), localFlag(), quorumFlag(), volumeFlag(), imageFlag(), thinFlag(), dryRunFlag(),
			&cli.BoolFlag{Name: "diff", Aliases: []string{"d"}, Usage: "print the change as a diff instead of the XML"},
		},
		Action: func(c *cli.Context) error { return rewrite(p, c) },
	}
}

func bindFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "bind", Aliases: []string{"b"},
		Usage: "bind disks: `BINDING` is SEL:kind=value,opt=value;… with a target, a serial or * as SEL (repeatable)"}
}

func localFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "local", Aliases: []string{"l"},
		Usage: "give a disk a local copy: `DISK`[=BACKEND[,opt=value…]], where DISK may be * (repeatable)"}
}

// flagBindings reads --bind, and --local, --quorum, --volume, --thin and --image, which are short for it:
// vda=lvmthin,on-stop=keep is vda:local=lvmthin,on-stop=keep.
func flagBindings(c *cli.Context) ([]bindings.Binding, error) {
	var all []bindings.Binding
	take := func(flag, text string) error {
		b, err := bindings.Parse(flag, text, bindings.Flag)
		all = append(all, b...)
		return err
	}
	for _, text := range c.StringSlice("bind") {
		if err := take("--bind", text); err != nil {
			return nil, err
		}
	}
	for _, kind := range []string{"local", "quorum", "volume", "thin"} {
		for _, text := range c.StringSlice(kind) {
			if strings.Contains(text, ";") {
				return nil, failure.Hint(failure.New(failure.Usage, "--%s %q: it takes one disk", kind, text), "repeat --%s for each disk", kind)
			}
			if err := take("--"+kind, inFull(kind, text)); err != nil {
				return nil, err
			}
		}
	}
	return withImages(c, all)
}

// inFull is DISK=VALUE,opt=value of a kind in the grammar of bindings.
func inFull(kind, text string) string {
	disk, options, has := strings.Cut(text, ",")
	disk, value, valued := strings.Cut(disk, "=")
	binding := disk + ":" + kind
	if valued {
		binding += "=" + value
	}
	if has {
		binding += "," + options
	}
	return binding
}

func rewrite(p *program, c *cli.Context) error {
	file, s, written, err := fileArgs(p, c)
	if err != nil {
		return err
	}
	doc, err := p.readDocument(file)
	if err != nil {
		return err
	}
	d, err := bindings.ReadDomain(doc)
	if err != nil {
		return err
	}
	rules, err := bindings.FromRules(s.config.Rules, d)
	if err != nil {
		return err
	}
	r := bindings.Rewritten{Before: doc, After: doc}
	elements, err := s.elements(c, d, written)
	if err != nil {
		return err
	}
	written = append(written, elements...)
	// What nothing binds need not even be a domain.
	if written = append(written, rules...); len(written) > 0 || d.Metadata != nil {
		if root := doc.Root(); root != "domain" {
			err := failure.New(failure.Usage, "%s: not a domain: its root element is %q", cmp.Or(file, "standard input"), root)
			return failure.Hint(err, "give it the XML of one domain, as `virsh dumpxml --inactive` prints it")
		}
		if r, err = s.host.Rewrite(doc, written); err != nil {
			return err
		}
	}
	for _, skipped := range r.Skipped {
		fmt.Fprintf(p.stderr, "diskhook: disk %s: not bound: %s\n", harmless(skipped.Target), skipped.Why)
	}
	diff := r.Diff()
	switch {
	case c.Bool("dry-run") && diff != "":
		if _, err := fmt.Fprint(p.stdout, diff); err != nil {
			return err
		}
		return wouldChange()
	case c.Bool("dry-run"):
		return nil
	case c.Bool("diff"):
		_, err = fmt.Fprint(p.stdout, diff)
	default:
		_, err = p.stdout.Write(r.After.Bytes())
	}
	return err
}

// readDocument reads and parses a domain's XML; errors name where it is from.
func (p *program) readDocument(name string) (*xmlrewrite.Document, error) {
	xml, err := p.readXML(name)
	if err != nil {
		return nil, err
	}
	doc, err := xmlrewrite.Parse(xml)
	if err != nil {
		if name == "" || name == "-" {
			name = "standard input"
		}
		return nil, failure.Hint(fmt.Errorf("%s: %w", name, err), "give it the XML of one domain, as `virsh dumpxml --inactive` prints it")
	}
	return doc, nil
}
