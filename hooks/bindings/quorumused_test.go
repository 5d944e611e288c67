// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"os"
	"testing"

	"diskhook/storage/host"
	"diskhook/storage/receipts"
)

// A receipt that says so already is left as it is.
func TestReceiptOfASetIsWrittenOnce(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	use := QuorumUse{Set: "db", Domain: "69b6b942-b5bf-4740-bb95-6752ffbd3bcf", DomainName: "vm", Target: "vda", Key: "vda"}
	var files []os.FileInfo
	for range 2 {
		if err := markQuorumUsed(l, use); err != nil {
			t.Fatal(err)
		}
		file, err := os.Stat(receipts.Path(l, use.Domain, use.Key+quorumUsedSuffix))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	if !os.SameFile(files[0], files[1]) {
		t.Error("it was written again")
	}
}
