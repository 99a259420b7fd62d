"""Unusual paths, as they arrive."""
from case import Ask, Case

ODD = ["/", "/a/./b", "/a/../b", "/a/b/..", "/a/b/.", "/..", "/../../a", "/a//b", "//a", "/a/%2e/b", "/a/%2E%2e/b", "/a/.%2e/b", "/a%2Fb", "/a%2fb",
       "/%61b", "/%41", "/%7Ea", "/a%2Db%5F%2E", "/a%20b", "/a%zzb", "/a%", "/a%0", "/a\\b", "/a\\..\\b", "/a%5Cb", "/a;b=c", "/a/;b", "/a:b@c",
       "/a'b", "/a\"b", "/a{b}", "/a|b", "/a^b", "/a[b]", "/a!$&()*+,=~b", "/a?b=../c", "/a/..?b", "/a/../?b=%61", "/a?", "/a?b?c", "/?",
       "/.", "/./", "/...", "/a/.../b", "/.a", "/a.", "/a/..b", "/a/b../c", "/%e4%bd%a0", "/a%25b", "/a#b", "/a/../b#c"]
CASES = [Case(f"paths: {path}", asks=[Ask(path)], same=("status", "seen")) for path in ODD]
CASES += [Case("paths: %00 is refused", asks=[Ask("/a%00b")], same=("status",))]
