// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

func gcFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do it; without this, only show it"},
		&cli.StringFlag{Name: "discard-guest-data", Usage: "remove the copy `OBJECT`, of which no receipt tells, and nothing else"},
		&cli.StringFlag{Name: "wipe", Value: string(localdisk.WipeNone), Usage: "what to do with the data of copies first, `HOW`: none, zero or discard"},
		&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "list also files about copies that are kept"},
		connectFlag(), dryRunFlag(),
	}
}

// collected is one object with what became of it.
type collected struct {
	localdisk.Judged
	Done  bool   `json:"done"`
	Error string `json:"error,omitempty"`
}

// localGC shows what would be removed, and why each object is taken or kept;
// with --yes it removes it. One that fails does not stop the others.
func localGC(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	wipe, err := localdisk.ParseWipe(c.String("wipe"))
	if err != nil {
		return err
	}
	yes := c.Bool("yes")
	if yes && c.Bool("dry-run") {
		return see(c, failure.New(failure.Usage, "--yes and --dry-run exclude each other"))
	}
	judged, err := s.local.Judge(c.Context, s.gone(c))
	if err != nil {
		return err
	}
	take := s.local.Take
	if object := c.String("discard-guest-data"); object != "" {
		one, err := s.discarded(c, judged, object)
		if err != nil {
			return err
		}
		judged, take = []localdisk.Judged{one}, s.local.Discard
	}
	all := make([]collected, len(judged))
	taken := 0
	var failed []error
	for i, j := range judged {
		all[i].Judged = j
		if !j.Take {
			continue
		}
		taken++
		if !yes {
			continue
		}
		if err := take(c.Context, j, wipe); err != nil {
			failed = append(failed, err)
			all[i].Error = failure.OneLine(err.Error())
			continue
		}
		all[i].Done = true
	}
	shown := all
	if f == table && !c.Bool("all") {
		shown = withoutKeptFiles(all)
	}
	if err := p.print(f, collection(shown, yes)); err != nil {
		return err
	}
	if err := worst(failed, taken); err != nil {
		return err
	}
	if !yes && taken > 0 {
		if f != inJSON {
			fmt.Fprintf(p.stderr, "diskhook: nothing was done; `diskhook local gc --yes` removes %d of them\n", taken)
		}
		return wouldChange()
	}
	return nil
}

// discarded is the one object that is to be removed whatever it holds.
func (s *services) discarded(c *cli.Context, judged []localdisk.Judged, object string) (localdisk.Judged, error) {
	i := slices.IndexFunc(judged, func(j localdisk.Judged) bool { return j.Is(object) })
	if i < 0 {
		err := failure.New(failure.NotFound, "--discard-guest-data %q: there is no such object", object)
		return localdisk.Judged{}, failure.Hint(err, "name it as `diskhook local gc` does")
	}
	j := judged[i]
	if j.Domain != "" && j.Disk != "" {
		if err := s.domains.MayChange(c.Context, j.Domain, j.Disk); err != nil {
			return j, err
		}
	}
	if err := j.Discardable(); err != nil {
		return j, err
	}
	j.Take, j.Reason, j.Hint = true, "as it was asked for: "+j.Reason, ""
	return j, nil
}

// withoutKeptFiles leaves out the files about copies that stay, of which each
// copy has some: nobody has to do anything about them.
func withoutKeptFiles(all []collected) []collected {
	return slices.DeleteFunc(slices.Clone(all), func(o collected) bool { return !o.Take && o.AboutCopy() })
}

// gone asks libvirt which domains there are. Where there is none to ask, or it
// does not answer, no domain is said to be gone.
func (s *services) gone(c *cli.Context) func(string) bool {
	if s.domains.Libvirt.URI == "" {
		return nil
	}
	all, err := s.domains.Libvirt.List(c.Context, false)
	if err != nil {
		s.log.Info("libvirt was not asked which domains there are", "err", err)
		return nil
	}
	there := map[string]bool{}
	for _, d := range all {
		there[d.UUID] = true
	}
	return func(domain string) bool { return !there[domain] }
}

func collection(all []collected, yes bool) listing {
	l := listing{
		schema: "diskhook.local-gc/v1", member: "objects", items: all,
		header:  []string{"KIND", "OBJECT", "SIZE", "DECISION", "REASON"},
		ifEmpty: "nothing of local copies on this host",
	}
	for _, o := range all {
		decision, reason := "keep", o.Reason
		switch {
		case o.Done:
			decision = "removed"
		case o.Error != "":
			decision, reason = "failed", o.Error
		case o.Take:
			decision = "remove"
		}
		if o.Hint != "" {
			reason += fmt.Sprintf(" (`%s`)", o.Hint)
		}
		if o.Take && (!yes || o.Done) {
			l.names = append(l.names, o.Object)
		}
		l.rows = append(l.rows, []string{o.Kind, o.Object, size(o.Bytes), decision, reason})
	}
	return l
}
