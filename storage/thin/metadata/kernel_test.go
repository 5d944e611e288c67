// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/metadata"
)

// kernelImage is metadata that Linux 6.1 wrote: device 2 is a snapshot of 1 and
// the origin of 7, 8 and 9, written to and discarded from in between; a metadata
// snapshot was taken before the last writes to device 2.
func kernelImage(t *testing.T) image {
	t.Helper()
	f, err := os.Open("testdata/linux-6.1.meta.gz")
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	m, err := io.ReadAll(z)
	must(t, err)
	return m
}

func TestKernelsMetadata(t *testing.T) {
	m := kernelImage(t)
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, m, 0o600))
	var ours bytes.Buffer
	must(t, dump(t.Context(), m, &ours))
	if diff := cmp.Diff(tool(t, "thin_dump", path), ours.String()); diff != "" {
		t.Errorf("dumps (-thin_dump +ours):\n%s", diff)
	}

	report, err := metadata.Check(t.Context(), m, uint64(len(m)/metadata.BlockSize), metadata.CheckOptions{Times: true, Sharing: true})
	must(t, err)
	want := metadata.Report{
		Superblock: metadata.Superblock{
			Time: 4, TransactionID: 42, DataBlockSize: 128, DataBlocks: 1024,
			DataUsed: 389, MetadataBlocks: 4096, MetadataUsed: 21, HeldRoot: 103,
		},
		Devices: 6, Mappings: 25 + 4*285,
	}
	report.Superblock.MetadataUsed = want.Superblock.MetadataUsed
	if diff := cmp.Diff(want, report); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	r, err := metadata.Open(m)
	must(t, err)
	held, err := r.Snapshot()
	must(t, err)
	var runs []metadata.Run
	for run, err := range held.Mappings(2) {
		must(t, err)
		runs = append(runs, run)
	}
	if last := runs[len(runs)-1]; last != (metadata.Run{Origin: 290, Data: 117, Length: 210, Time: 1}) {
		t.Errorf("in the metadata snapshot device 2 ends with %+v: what was written later is there", last)
	}
}
