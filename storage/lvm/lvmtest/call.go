// SPDX-License-Identifier: Apache-2.0

package lvmtest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"diskhook/storage/command"
)

// call is one parsed command line.
type call struct {
	verb    string
	options map[string][]string
	rest    []string // VG or VG/LV
}

// takesValue tells options with a value from switches. Options may be glued
// to their value (-ay). What is not here is refused.
var takesValue = map[string]bool{
	"--config": true, "-n": true, "-L": true, "-V": true, "--thinpool": true, "--addtag": true, "--deltag": true,
	"-a": true, "-k": true, "-W": true, "-Z": true, "-S": true, "-o": true, "--configreport": true, "--reportformat": true, "--units": true,
	"-p": true,
	"-y": false, "-K": false, "-s": false, "--nosuffix": false,
}

func parse(args []string) (call, error) {
	c := call{options: map[string][]string{}}
	if len(args) == 0 {
		return c, fmt.Errorf("fake lvm: no command")
	}
	c.verb = args[0]
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			c.rest = append(c.rest, arg)
			continue
		}
		value, known := takesValue[arg]
		if !known && len(arg) > 2 && arg[1] != '-' && takesValue[arg[:2]] {
			c.options[arg[:2]] = append(c.options[arg[:2]], arg[2:])
			continue
		}
		switch {
		case !known:
			return c, fmt.Errorf("  %s: unrecognized option '%s'", c.verb, arg)
		case value && i+1 == len(args):
			return c, fmt.Errorf("  %s: option '%s' requires an argument", c.verb, arg)
		case value:
			i++
			c.options[arg] = append(c.options[arg], args[i])
		default:
			c.options[arg] = append(c.options[arg], "")
		}
	}
	if len(c.rest) == 0 {
		return c, fmt.Errorf("  %s: please provide a volume group name", c.verb)
	}
	return c, nil
}

func (c call) value(option string) string {
	if v := c.options[option]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

func (c call) has(option string) bool { return len(c.options[option]) > 0 }

func (c call) vg() string {
	vg, _, _ := strings.Cut(c.rest[0], "/")
	return vg
}

func (c call) names() []string {
	var names []string
	for _, path := range c.rest {
		if _, name, ok := strings.Cut(path, "/"); ok {
			names = append(names, name)
		}
	}
	return names
}

// log appends the call without --config, options in a fixed order.
func (c call) log(dir string) error {
	words := []string{c.verb}
	if c.verb != "fullreport" {
		for _, option := range []string{"-s", "-n", "-L", "-V", "--thinpool", "--addtag", "--deltag", "-p", "-a", "-k", "-K"} {
			for _, v := range c.options[option] {
				words = append(words, option)
				if v != "" {
					words = append(words, v)
				}
			}
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, command.Quote(append(words, c.rest...)))
	return err
}

// report prints what fullreport prints: all values are strings.
func (g *Group) report(call) int {
	out, err := g.rendered(extent, func(v *Volume) bool { return v.Active })
	if err == nil {
		_, err = os.Stdout.Write(out)
	}
	if err != nil {
		return fail("fake lvm: %v", err)
	}
	return 0
}

// rendered is the report; active says which volumes are.
func (g *Group) rendered(extent int64, active func(*Volume) bool) ([]byte, error) {
	type row map[string]string
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	vg := row{
		"vg_name": g.Name, "vg_uuid": g.UUID, "vg_attr": "wz--n-", "vg_size": number(g.Size), "vg_free": number(g.Size - g.used()),
		"vg_extent_size": number(extent), "vg_missing_pv_count": "0", "vg_seqno": "1", "vg_lock_type": g.LockType,
	}
	lvs, segs := []row{}, []row{}
	names := make([]string, 0, len(g.Volumes))
	for name := range g.Volumes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		v := g.Volumes[name]
		lvs = append(lvs, row{
			"lv_uuid": v.UUID, "lv_name": name, "lv_attr": v.attr(active(v)), "lv_tags": strings.Join(v.Tags, ","), "lv_size": number(v.Size),
			"pool_lv": v.Pool, "origin": v.Origin, "data_percent": g.percent(name), "metadata_percent": v.metadataPercent(), "lv_path": "/dev/" + g.Name + "/" + name,
		})
		segs = append(segs, row{"lv_uuid": v.UUID, "segtype": v.segtype(), "chunk_size": "65536"})
	}
	out, err := json.Marshal(map[string]any{"report": []any{map[string]any{"vg": []row{vg}, "pv": []row{}, "lv": lvs, "pvseg": []row{}, "seg": segs}}})
	return append(out, '\n'), err
}

// percent is how full a pool is: by what its volumes' images take on disk, and
// nothing for what a snapshot has got since it was taken.
func (g *Group) percent(pool string) string {
	if !g.Volumes[pool].IsPool {
		return ""
	}
	var taken int64
	for name, v := range g.Volumes {
		var st syscall.Stat_t
		if v.Pool == pool && v.Origin == "" && syscall.Stat(image(name), &st) == nil {
			taken += st.Blocks * 512
		}
	}
	return strconv.FormatFloat(100*float64(taken)/float64(g.Volumes[pool].Size), 'f', 2, 64)
}

func (v *Volume) metadataPercent() string {
	if v.IsPool {
		return "0.00"
	}
	return ""
}

func (v *Volume) segtype() string {
	switch {
	case v.IsPool:
		return "thin-pool"
	case v.Pool != "":
		return "thin"
	}
	return "linear"
}

// attr is lv_attr of lvs(8): type, permissions, allocation, fixed minor,
// state, device open, target type, zeroes, health, skip activation.
func (v *Volume) attr(active bool) string {
	a := []byte("-wi-------")
	switch {
	case v.IsPool:
		a[0], a[6], a[7] = 't', 't', 'z'
		if v.KeepsOld {
			a[7] = '-'
		}
	case v.Pool != "":
		a[0], a[6], a[7] = 'V', 't', 'z'
	}
	if v.ReadOnly {
		a[1] = 'r'
	}
	if active {
		a[4] = 'a'
	}
	if v.Open {
		a[5] = 'o'
	}
	if v.Skip {
		a[9] = 'k'
	}
	return string(a)
}
