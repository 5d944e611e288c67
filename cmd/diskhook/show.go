// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

func showCommand(p *program) *cli.Command {
	return &cli.Command{
		Name: "show", Usage: "show a domain's disks, what they are bound to, and what a start would do",
		ArgsUsage:   "FILE|NAME",
		Description: "An argument with a slash, one that ends in .xml, and - (standard input) are files.",
		Flags:       []cli.Flag{connectFlag(), outputFlag()},
		Action:      func(c *cli.Context) error { return show(p, c) },
	}
}

// shownDisk is one disk as show prints it.
type shownDisk struct {
	Target  string `json:"target"`
	Device  string `json:"device"`
	Type    string `json:"type"`
	Format  string `json:"format"`
	Source  string `json:"source"`
	Binding string `json:"binding"`
	Origin  string `json:"origin"` // what a bound disk was before
	// Replicas are the images of a disk that is, or was before it was lowered, an
	// element of replicas, or else those of the set that it is bound to.
	Replicas []string `json:"replicas,omitempty"`
	Start    string   `json:"start"` // what a start would do with it
	Unfit    string   `json:"unfit"` // why it cannot be bound
}

func show(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	words, err := operands(c, "FILE or NAME")
	if err != nil {
		return err
	}
	s, err := p.services(c)
	if err != nil {
		return err
	}
	doc, err := p.documentOf(c, s, words[0])
	if err != nil {
		return err
	}
	disks := shownDisks(doc)
	s.showReplicas(doc, disks)
	plan, err := bindings.Simulate(c.Context, s.host, "prepare", doc.Bytes(), nil)
	if err != nil {
		return err
	}
	for _, step := range plan.Steps {
		for i := range disks {
			if disks[i].Target == step.Target {
				disks[i].Start = strings.TrimPrefix(step.What, "disk "+step.Target+": ")
			}
		}
	}
	veto := ""
	if plan.Veto != nil {
		veto = failure.Line(plan.Veto)
	}
	if f == inJSON {
		return p.printJSON(map[string]any{
			"schema": "diskhook.domain/v1", "name": doc.Name(), "uuid": doc.UUID(), "disks": disks, "veto": veto,
		})
	}
	l := listing{header: []string{"TARGET", "TYPE", "FORMAT", "SOURCE", "BINDING", "ORIGIN", "AT START"}, ifEmpty: "the domain has no disks"}
	for _, d := range disks {
		at := d.Start
		if at == "" && d.Unfit != "" {
			at = "not ours: " + d.Unfit
		}
		l.rows = append(l.rows, []string{d.Target, d.Type, d.Format, d.Source, d.Binding, d.Origin, at})
		l.names = append(l.names, d.Target)
	}
	if err := p.print(f, l); err != nil {
		return err
	}
	if veto != "" {
		fmt.Fprintf(p.stderr, "diskhook: a start would be refused: %s\n", veto)
	}
	return nil
}

// documentOf reads the domain that a word means: a file or a name.
func (p *program) documentOf(c *cli.Context, s *services, word string) (*xmlrewrite.Document, error) {
	if word == "-" || strings.Contains(word, "/") || strings.HasSuffix(word, ".xml") {
		return p.readDocument(word)
	}
	d, err := s.domains.Look(c.Context, word)
	if err != nil && d.Doc == nil {
		if _, missing := os.Stat(word); !errors.Is(missing, fs.ErrNotExist) {
			err = failure.Hint(err, "if you mean the file, write ./%s", word)
		}
		return nil, err
	}
	return d.Doc, nil
}

func shownDisks(doc *xmlrewrite.Document) []shownDisk {
	metadata, _ := doc.Metadata() // damaged ones veto a start, which is told
	vdsm, ovirt := doc.VDSM()
	shown := []shownDisk{}
	for _, x := range doc.Disks() {
		d := shownDisk{
			Target: x.Target, Device: x.Device, Type: x.Type, Format: x.Driver.Type, Source: x.Source.String(),
			Unfit: bindings.ReadDisk(x, ovirt, vdsm.Disks[x.Target]).Unfit,
		}
		if entry, bound := metadata.Disk(x.Target); bound {
			d.Binding, d.Unfit = describeBinding(entry), ""
			d.Origin = originOf(entry)
		}
		shown = append(shown, d)
	}
	return shown
}

func describeBinding(e *xmlrewrite.BoundDisk) string {
	var options [][2]string
	text := e.Kind()
	switch l, q, v, i, t := e.Local, e.Quorum, e.Volume, e.Image, e.Thin; {
	case l != nil:
		text += "=" + l.Backend
		options = [][2]string{{"fill", l.Fill}, {"template", l.Template}, {"on-stop", l.OnStop}}
		if from := e.OriginImage; from != nil {
			options = append(options, [2]string{"image", from.ID}, [2]string{"repo", from.Repo})
		}
	case q != nil:
		text += "=" + q.Set
		options = [][2]string{{"lower", q.Lower}, {"transport", q.Transport}}
	case v != nil:
		text += "=" + v.ID
	case i != nil:
		text += "=" + i.ID
		options = [][2]string{{"repo", i.Repo}}
	case t != nil:
		text += "=" + t.Volume
		options = [][2]string{{"cluster", t.Cluster}}
	}
	for _, option := range options {
		if option[1] != "" {
			text += "," + option[0] + "=" + option[1]
		}
	}
	return text
}

// originOf is what a bound disk was before; "" if nobody knows.
func originOf(e *xmlrewrite.BoundDisk) string {
	origin, err := e.OriginDisk()
	if err != nil {
		return ""
	}
	if origin.Type == "quorum" {
		return "replicas: " + strings.Join(replicasIn(e.Origin, origin.Target), " ")
	}
	return origin.Source.String()
}

// replicasIn are the top images of a quorum element.
func replicasIn(xml []byte, target string) []string {
	doc, err := xmlrewrite.Parse(xml)
	if err != nil {
		return nil
	}
	elements, err := xmlrewrite.ReadQuorum(doc)
	if err != nil {
		return nil // which vetoes a start, which is told
	}
	var all []string
	for _, q := range elements {
		for _, r := range q.Replicas {
			if (target == "" || q.Target == target) && len(r.Chain) > 0 {
				all = append(all, r.Chain[0].Source.String())
			}
		}
	}
	return all
}

func (s *services) showReplicas(doc *xmlrewrite.Document, disks []shownDisk) {
	metadata, _ := doc.Metadata()
	for i := range disks {
		d := &disks[i]
		entry, bound := metadata.Disk(d.Target)
		if d.Type == "quorum" {
			d.Replicas = replicasIn(doc.Bytes(), d.Target)
		}
		if !bound || entry.Quorum == nil || d.Replicas != nil {
			continue
		}
		set, err := s.quorum.Load(entry.Quorum.Set)
		if err != nil {
			continue // which vetoes a start, which is told
		}
		for _, r := range set.Replicas {
			d.Replicas = append(d.Replicas, r.Top().String())
		}
	}
}
