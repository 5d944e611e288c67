// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/command/commandtest"
	"diskhook/storage/imagecheck"
	"diskhook/storage/transfer"
)

// What a dry run shows: how it is copied, and the command line that is run
// where there is one.
func TestExplain(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"raw", 1 << 20, []step{{0, 4096, 1}}}, {"qcow2", 1 << 20, nil}})
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 2 << 20}
	fillFile(t, target.Path, target.Size)
	explained := func(source transfer.Source) string {
		return strings.Join((&transfer.Engine{}).Explain(source, target), "\n")
	}
	want := "# copy " + chain[0].Path + " to " + target.Path + ": natively, only what has data; zeros are written\n" +
		"# zero 1048576 bytes at 1048576 of " + target.Path + "\n# flush " + target.Path
	if got := explained(inspect(t, chain)); got != want {
		t.Errorf("explained:\n%s\nwant:\n%s", got, want)
	}
	target.Zeroed = true
	want = "# copy " + chain[1].Path + " to " + target.Path + ": sharing its blocks if the file system can, else natively; zeros are left out\n# flush " + target.Path
	if got := explained(inspect(t, chain[1:])); got != want {
		t.Errorf("explained:\n%s\nwant:\n%s", got, want)
	}

	packed := compressed(t, chain)
	source := inspect(t, packed)
	for zeroed, flag := range map[bool]string{true: " --target-is-zero", false: ""} {
		target.Zeroed = zeroed
		command := `qemu-img convert -p -t none -T none -n` + flag + ` -W -m 16 -O raw -- 'json:{"driver":"qcow2","file":{"driver":"file","filename":"` + packed[0].Path +
			`"},"backing":null}' 'json:{"driver":"raw","size":1048576,"file":{"driver":"file","filename":"` + target.Path + `"}}'`
		if got := explained(source); !strings.Contains(got, "by qemu-img, since "+packed[0].Path) || !strings.Contains(got, "compressed") || !strings.Contains(got, command) {
			t.Errorf("explained:\n%s\nwant:\n%s", got, command)
		}
		fake := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
			{Prefix: "qemu-img --version", Stdout: "qemu-img version 7.2.22\n"}, {Prefix: "qemu-img convert"},
		}}
		if zeroed {
			continue // a file of old bytes is not believed
		}
		if _, err := (&transfer.Engine{Run: fake}).Copy(t.Context(), source, target, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		if got := fake.Lines(); len(got) != 2 || got[1] != command {
			t.Errorf("run:\n%s\nexplained:\n%s", strings.Join(got, "\n"), command)
		}
	}
}

// compressed makes a compressed image of what a chain shows.
func compressed(t testing.TB, chain []imagecheck.Layer) []imagecheck.Layer {
	t.Helper()
	path := chain[0].Path + ".packed"
	tool(t, "qemu-img", "convert", "-c", "-f", chain[0].Format, "-O", "qcow2", chain[0].Path, path)
	return []imagecheck.Layer{{Path: path, Format: "qcow2"}}
}
