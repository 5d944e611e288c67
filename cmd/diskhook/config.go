// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
)

func configCommand(p *program) *cli.Command {
	return &cli.Command{
		Name: "config", Usage: "what this host's configuration says",
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "print every setting, as diskhook.toml",
				Flags: []cli.Flag{
					outputFlag(),
					&cli.BoolFlag{Name: "origin", Usage: "say what each setting is and where its value comes from"},
				},
				Action: func(c *cli.Context) error { return configShow(p, c) },
			},
			{
				Name: "check", Usage: "read the configuration; exit 8 if it is wrong",
				Action: func(c *cli.Context) error {
					if _, err := operands(c); err != nil {
						return err
					}
					_, err := p.config()
					return failure.Wrap(failure.Problems, err)
				},
			},
		},
	}
}

// setting is one key of the configuration.
type setting struct {
	Key     string `json:"key"` // table.key, as in TOML
	Value   any    `json:"value"`
	Origin  string `json:"origin"` // the file, or "default"
	Meaning string `json:"meaning"`
}

// settings lists every key with its value. Sizes are bytes.
func settings(c host.Config) []setting {
	duration := func(d host.Duration) string { return time.Duration(d).String() }
	return []setting{
		{Key: "paths.roots", Value: orEmpty(c.Paths.Roots), Meaning: "directories below which a source may lie"},
		{Key: "local.backend", Value: c.Local.Backend, Meaning: "where local copies live: dir, lvm, lvmthin or thin"},
		{Key: "local.vg", Value: c.Local.VG, Meaning: "volume group of lvm and lvmthin"},
		{Key: "local.pool", Value: c.Local.Pool, Meaning: "thin pool of lvmthin, in that group"},
		{Key: "local.dir", Value: c.Local.Dir, Meaning: "directory of dir"},
		{Key: "local.sparse", Value: c.Local.Sparse, Meaning: "dir: do not preallocate; thin: ask the cluster for blocks only as they are written"},
		{Key: "local.deadline", Value: duration(c.Local.Deadline), Meaning: "how long a libvirt start waits for a copy"},
		{Key: "local.reserve", Value: int64(c.Local.Reserve), Meaning: "bytes to leave free in file system or volume group"},
		{Key: "local.pool_reserve", Value: c.Local.PoolReserve, Meaning: "percent of the thin pool, or of the thin cluster, to leave free"},
		{Key: "local.rate", Value: int64(c.Local.Rate), Meaning: "bytes per second of one copy; 0 is no limit"},
		{Key: "local.io_class", Value: c.Local.IOClass, Meaning: "how copies ask for a disk: best-effort, after others, or idle, when nobody else wants it"},
		{Key: "local.cache", Value: c.Local.Cache, Meaning: "auto: copy a template once and clone it, where clones are cheap; or off"},
		{Key: "local.cache_min_age", Value: duration(c.Local.CacheMinAge), Meaning: "how long an unused template is kept after its last use"},
		{Key: "lvm.devices", Value: orEmpty(c.LVM.Devices), Meaning: "the only devices LVM may look at; empty leaves it to LVM"},
		{Key: "lvm.timeout", Value: duration(c.LVM.Timeout), Meaning: "how long one LVM command may take"},
		{Key: "managed.database", Value: c.Managed.Database, Meaning: "database of managed volumes"},
		{Key: "managed.adapters", Value: orEmpty(c.Managed.Adapters), Meaning: "programs that attach kinds of volumes unknown to diskhook"},
		{Key: "quorum.daemon", Value: c.Quorum.Daemon, Meaning: "qemu-storage-daemon to serve replica sets with; empty is the system's"},
		{Key: "quorum.hang_timeout", Value: duration(c.Quorum.HangTimeout), Meaning: "after which a silent replica is cut off"},
		{Key: "repository.host_id", Value: c.Repository.HostID, Meaning: "this host's number in storage repositories"},
		{Key: "repository.deadline", Value: duration(c.Repository.Deadline), Meaning: "how long a repository may be silent"},
		{Key: "thin.cluster", Value: c.Thin.Cluster, Meaning: "this host's thin cluster, also for local copies of backend thin"},
	}
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func configShow(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	if _, err := operands(c); err != nil {
		return err
	}
	config, wrong := p.config()
	all, err := withOrigin(p.layout, settings(config))
	if wrong != nil {
		wrong = failure.Hint(wrong, "correct the file; what is wrong in it is shown with its default; diskhook.toml(5) explains each key")
		if err != nil { // nothing of it can be read
			return failure.Hint(wrong, "correct the file; diskhook.toml(5) explains it")
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(p.printConfig(c, f, config, all), wrong)
}

func (p *program) printConfig(c *cli.Context, f format, config host.Config, all []setting) error {
	switch f {
	case inJSON:
		return p.printJSON(map[string]any{"schema": "diskhook.config/v1", "settings": all, "rules": rulesJSON(config.Rules)})
	case asNames:
		for _, s := range all {
			fmt.Fprintln(p.stdout, s.Key)
		}
		return nil
	}
	return p.printTOML(all, config.Rules, c.Bool("origin"))
}

func withOrigin(l host.Layout, all []setting) ([]setting, error) {
	written := map[string]any{}
	md, err := toml.DecodeFile(l.Config(), &written)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", l.Config(), err)
	}
	for i := range all {
		all[i].Origin = "default"
		if md.IsDefined(strings.Split(all[i].Key, ".")...) {
			all[i].Origin = l.Config()
		}
	}
	return all, nil
}

// printTOML writes what diskhook.toml would have to say for this configuration.
func (p *program) printTOML(all []setting, rules []host.Rule, origin bool) error {
	var b bytes.Buffer
	section := ""
	for _, s := range all {
		name, key, _ := strings.Cut(s.Key, ".")
		if name != section {
			if section != "" {
				b.WriteByte('\n')
			}
			fmt.Fprintf(&b, "[%s]\n", name)
			section = name
		}
		if origin {
			fmt.Fprintf(&b, "# %s (%s)\n", s.Meaning, s.Origin)
		}
		// A JSON string, number, boolean or list of strings is TOML as well.
		value, err := json.Marshal(s.Value)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s = %s\n", key, value)
	}
	for _, r := range rules {
		b.WriteString("\n[[rule]]\n")
		if origin {
			fmt.Fprintf(&b, "# binds disks in rewrite and apply (%s)\n", p.layout.Config())
		}
		for _, kv := range [][2]string{{"name", r.Name}, {"target", r.Target}, {"path", r.Path}, {"binding", r.Binding}} {
			if kv[1] != "" {
				value, err := json.Marshal(kv[1])
				if err != nil {
					return err
				}
				fmt.Fprintf(&b, "%s = %s\n", kv[0], value)
			}
		}
	}
	_, err := p.stdout.Write(b.Bytes())
	return err
}

func rulesJSON(rules []host.Rule) []map[string]string {
	all := []map[string]string{}
	for _, r := range rules {
		all = append(all, map[string]string{"name": r.Name, "target": r.Target, "path": r.Path, "binding": r.Binding})
	}
	return all
}
