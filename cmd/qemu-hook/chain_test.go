// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestWithTheRealDiskhook runs qemu-hook, diskhook and its copy process as
// they are, on a domain that diskhook itself has bound: as libvirt calls
// them, then as VDSM does.
func TestWithTheRealDiskhook(t *testing.T) {
	dependsOn(t, "../diskhook", "../../hooks", "../../storage", "../../xmlrewrite")
	root := t.TempDir()
	diskhook := root + "/bin/diskhook"
	build := exec.Command("go", "build", "-tags", "testroot", "-o", diskhook, "diskhook/cmd/diskhook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	write := func(name string, content []byte) string {
		t.Helper()
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fixture := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile("../../testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.ReplaceAll(b, []byte("ROOT"), []byte(root))
	}
	content := bytes.Repeat([]byte("shared "), 1024)
	write("etc/machine-id", []byte("0123456789abcdef0123456789abcdef\n"))
	write("etc/diskhook/diskhook.toml", []byte("[paths]\nroots = [\""+root+"\"]\n[local]\nreserve = \"1M\"\n"))
	source := write("images/data.raw", content)
	env := []string{"DISKHOOK_ROOT=" + root, "DISKHOOK_PROGRAM=" + diskhook, "PATH=/usr/bin:/bin"}

	rewrite := exec.Command(diskhook, "rewrite", "--bind", "vdb:local=dir,fill=start", write("plain.xml", fixture("hooks/plain.xml")))
	rewrite.Env = env
	var stderr bytes.Buffer
	rewrite.Stderr = &stderr
	xml, err := rewrite.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	stable := filepath.Join(root, "run/diskhook/disks", uuid, "vdb")
	libvirt := func(op, sub string) result {
		return run(t, built.steered, asLibvirt, env, string(xml), "-rf", op, sub, "-")
	}

	if r := libvirt("prepare", "begin"); r.Code != 0 || r.Stdout != "" {
		t.Fatalf("prepare: %+v", r)
	}
	if got, err := os.ReadFile(stable); err != nil || !bytes.HasPrefix(got, content) {
		t.Errorf("the copy: %v", err)
	}
	if r := libvirt("migrate", "begin"); r.Code != 1 || strings.Count(r.Stderr, "\n") != 1 || !strings.Contains(r.Stderr, "disk vdb") {
		t.Errorf("migrate: %+v", r)
	}
	if r := libvirt("restore", "begin"); r.Code != 0 || r.Stdout != "" {
		t.Errorf("restore: %+v", r)
	}
	if r := libvirt("release", "end"); r.Code != 0 {
		t.Errorf("release: %+v", r)
	}
	if err := os.Remove(source); err != nil {
		t.Fatal(err)
	}
	if r := libvirt("prepare", "begin"); r.Code != 0 {
		t.Errorf("prepare without the shared storage: %+v", r)
	}

	// The same disk as one of oVirt.
	const image, volume = "c9865ca8-f6d2-4363-bec2-af870a87a819", "1dfad482-c65c-436c-aa59-87e020b63302"
	write("rhev/f3f6e278-47a1-4048-b9a5-0cf4d6ba455f/images/"+image+"/"+volume, content)
	file := write("hook.json", bytes.Replace(fixture("vdsm/disk-file.json"), []byte(`"cow"`), []byte(`"raw"`), 1))
	asVDSM := append(env, "vmId="+uuid, "_hook_json="+file, "diskhook=local=dir")
	if r := run(t, built.steered, "/usr/libexec/vdsm/hooks/after_disk_prepare/50_diskhook", asVDSM, ""); r.Code != 0 {
		t.Fatalf("after_disk_prepare: %+v", r)
	}
	copied := filepath.Join(root, "var/lib/diskhook/local", volume+".raw")
	if got, err := os.ReadFile(copied); err != nil || !bytes.HasPrefix(got, content) {
		t.Errorf("the copy: %v", err)
	}
	if got, _ := os.ReadFile(file); !bytes.Contains(got, []byte(`"path": "`+copied+`"`)) {
		t.Errorf("%s", got)
	}
	// The host's capabilities, as VDSM asks for them.
	const caps = `{"kvmEnabled": "true", "hooks": {"after_get_caps": {"50_diskhook": {"checksum": "\u00e9"}}}, "n": 1.50}`
	file = write("caps.json", []byte(caps))
	asVDSM = append(env, "_hook_json="+file)
	for range 2 { // the second time they have it
		if r := run(t, built.steered, "/usr/libexec/vdsm/hooks/after_get_caps/50_diskhook", asVDSM, ""); r.Code != 0 || r.Stdout+r.Stderr != "" {
			t.Fatalf("after_get_caps: %+v", r)
		}
		got, err := os.ReadFile(file)
		added, kept := strings.CutPrefix(string(got), strings.TrimSuffix(caps, "}")+`, "connector_info": {`)
		if err != nil || !kept || strings.Contains(added, "connector_info") || !strings.Contains(added, `"os_type":"linux"`) {
			t.Errorf("%s %v", got, err)
		}
	}

	file = filepath.Join(root, "hook.json")
	wrong := append(env, "vmId="+uuid, "_hook_json="+file, "localdisk=zfs")
	if r := run(t, built.steered, "/usr/libexec/vdsm/hooks/after_disk_prepare/50_diskhook", wrong, ""); r.Code != 2 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("a wrong value: %+v", r)
	}
}
