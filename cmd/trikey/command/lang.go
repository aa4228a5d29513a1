package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/internal/fault"
)

// Ceremonies speak English or Chinese: --lang, else the environment's LC_ALL,
// LC_MESSAGES or LANG. A text is known by its English form; one without a
// translation stays English.

const langFlag = "lang"

// chinese reports whether the person reads Chinese.
func chinese(cmd *cobra.Command) bool {
	if f := cmd.Flag(langFlag); f != nil && f.Changed {
		return f.Value.String() == "zh"
	}
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if v := os.Getenv(name); v != "" {
			return strings.HasPrefix(v, "zh")
		}
	}
	return false
}

// text formats a text in the person's language.
func text(cmd *cobra.Command, english string, args ...any) string {
	if translated, ok := zh[english]; ok && chinese(cmd) {
		english = translated
	}
	return fmt.Sprintf(english, args...)
}

// say writes a text in the person's language, and a line break.
func say(cmd *cobra.Command, w io.Writer, english string, args ...any) {
	fmt.Fprintln(w, text(cmd, english, args...))
}

// explain is an error as a person at a ceremony reads it: what the code means in their
// language, then the error itself.
func explain(cmd *cobra.Command, err error) string {
	if advice, ok := zhCodes[fault.CodeOf(err)]; ok && chinese(cmd) {
		return fmt.Sprintf("%s（%v）", advice, err)
	}
	return err.Error()
}

// localised is an error that prints as explain says, for the command's last line.
func localised(cmd *cobra.Command, err error) error {
	var f *fault.Error
	if err == nil || !chinese(cmd) || !errors.As(err, &f) {
		return err
	}
	if advice, ok := zhCodes[fault.CodeOf(err)]; ok {
		return fault.Wrap(fault.CodeOf(err), err, "%s", advice)
	}
	return err
}

var zhCodes = map[fault.Code]string{
	fault.PINIncorrect:       "PIN 不正确；只试了一次，不会自动再试",
	fault.PINLocked:          "此卡的 PIN 已锁定；用 SO PIN 解锁，或换另一张卡",
	fault.PINFinalTry:        "此卡只剩最后一次尝试；确认 PIN 后再继续",
	fault.PINTriesSpent:      "此卡在本机已输错两次；确认 PIN 后用卡序列号确认再试一次",
	fault.CardAbsent:         "卡不在读卡器中；请插入",
	fault.CardEmpty:          "此卡没有三钥份额；请确认拿对了卡",
	fault.CardInUse:          "此卡已存有份额；请换一张空卡，或确认无用后格式化",
	fault.CardDamaged:        "此卡上的份额已损坏；请用另一张卡，并尽快替换此卡",
	fault.CardMismatch:       "此卡上的份额不是本机所发：卡被伪造或改写",
	fault.CardOtherMachine:   "此卡属于另一台机器",
	fault.CardOlder:          "此卡属于旧的根密钥；请用最近一次轮换发的卡",
	fault.CardNewer:          "此卡比本机记录更新：数据目录是否被回滚？请恢复最新的目录",
	fault.CardSuperseded:     "此卡已被后来的重新分割取代；请用最近发的卡",
	fault.CardRepeated:       "此卡已经给过；请换另一张",
	fault.CardLost:           "此卡已在本次仪式中声明丢失",
	fault.CardFull:           "此卡没有存下份额；请换另一张卡",
	fault.CardsMissing:       "卡还不够",
	fault.RootMismatch:       "这些卡重建出的根密钥不是本机的；没有打开任何东西",
	fault.MachineBlank:       "机器是空白的；请先初始化（trikey machine init）",
	fault.MachineInitialised: "机器已经初始化",
	fault.MachineOpen:        "机器已经打开",
	fault.Conflict:           "与正在进行的仪式冲突",
	fault.NoWindow:           "没有打开的远程提交窗口，或已关闭；在机器旁运行 trikey machine unseal --remote，并重新核对指纹",
	fault.FingerprintWrong:   "指纹不符；什么都没有交出：窗口或请求已更换，或有人冒充机器",
	fault.JoinExpired:        "加入请求已过期；请在新机器上重新提出（trikey machine join-request），并核对两台主机的时钟",
	fault.NoCeremony:         "没有正在进行的仪式；请重新开始",
	fault.Unavailable:        "服务不可用；是否已启动（trikey serve）？",
}

var zh = map[string]string{
	"Insert the next card. (Ctrl-C ends; cards given so far stay given.)": "请插入下一张卡。（Ctrl-C 结束；已给的卡保留半小时。）",
	"Card %q, serial %s%s. PIN (empty skips this card): ":                 "卡 %q，序列号 %s%s。PIN（留空跳过此卡）：",
	"  refused: %s":                "  拒绝：%s",
	"The machine is open already.": "机器已经打开。",

	"The machine waits for cards from elsewhere.": "机器正在等待异地的卡。",
	"%d of %d cards are given.":                   "已给 %d / %d 张卡。",
	"Call each custodian, who runs trikey card submit --to https://THIS-HOST:PORT (machine.custodians.listen).":             "请致电各位持卡人，让其运行 trikey card submit --to https://本机:端口（machine.custodians.listen）。",
	"Read the whole fingerprint out; it is of this window only. Cards can be given here meanwhile (trikey machine unseal).": "请念出完整指纹；它只属于这个窗口。同时也可以在这里给卡（trikey machine unseal）。",
	"Ctrl-C closes the window; cards given so far stay given.":                                                              "Ctrl-C 关闭窗口；已给的卡保留半小时。",
	"%s waits for cards: %d of %d are given.":                                                                               "%s 正在等待卡：已给 %d / %d。",
	"Have it read out by the people at the machine, and compare what is shown.":                                             "请机器旁的人念出指纹，逐组核对所显示的部分。",
	"Type its last four characters: ":                                                                                       "请输入最后四个字符：",
	"The share was taken: %d of %d cards are given.":                                                                        "份额已收下：已给 %d / %d 张卡。",
	"The machine is open.": "机器已打开。",
	"This gives the root key of this machine to another one, which can do all that this one can:": "这会把本机的根密钥交给另一台机器；它随后能做本机能做的一切：",
	"Compare it with the new machine's own screen, then type its first %d characters: ":           "请与新机器自己的屏幕核对，然后输入指纹的前 %d 个字符：",
	"Approved: %d of %d.": "已批准：%d / %d。",
	"Nothing was given yet: another custodian runs this command with another card.":                   "尚未交出任何东西：请另一位持卡人用另一张卡运行此命令。",
	"Granted: %s. At the new machine: trikey machine join --in GRANT --peer %s":                       "已授予：%s。在新机器上运行：trikey machine join --in GRANT --peer %s",
	"Two custodians approve it at an open machine: trikey machine join-approve --in FILE --out GRANT": "由两位持卡人在一台已打开的机器上批准：trikey machine join-approve --in FILE --out GRANT",
	"Card %q accepted.":           "卡 %q 已接受。",
	"Card %q accepted: %d of %d.": "卡 %q 已接受：%d / %d。",

	"This ceremony makes a new root key and deals it to %d cards; any %d of them open the machine.":                                                "本仪式生成新的根密钥，分给 %d 张卡；任意 %d 张即可打开机器。",
	"This ceremony tests the machine's cards. Nothing is opened and nothing changes.":                                                              "本仪式检验机器的钥匙卡。不打开机器，也不改变任何东西。",
	"This ceremony deals the same root key anew to %d cards, any %d of which open the machine. The cards before no longer count after it.":         "本仪式把同一根密钥重新分给 %d 张卡，任意 %d 张即可打开机器。之前的卡随后作废。",
	"This ceremony deals the root key anew without the cards that are lost, to %d cards, any %d of which open the machine.":                        "本仪式不用丢失的卡，把根密钥重新分给 %d 张卡，任意 %d 张即可打开机器。",
	"This ceremony makes a new root key for %d cards, any %d of which open the machine, and moves every key to it. The service goes on answering.": "本仪式为 %d 张卡生成新的根密钥（任意 %d 张打开机器），并把所有密钥迁移过去。服务不中断。",
	"This ceremony destroys the root key. Every key, every message sealed with one, and every backup is lost for good.":                            "本仪式销毁根密钥。所有密钥、所有用它们加密的消息和所有备份都将永远无法打开。",
	"Until its end it can be ended with Ctrl-C and leaves nothing.":                                                                                "在结束之前可用 Ctrl-C 中止，不留下任何东西。",
	"Note: with %d of %d cards, losing one card loses every key. --shares 5 is recommended.":                                                       "注意：%d / %d 时，丢一张卡就丢失所有密钥。建议 --shares 5。",

	"Step: %d of the machine's cards authorise this. Insert them one after the other, or all at once.": "步骤：需要机器的 %d 张卡授权。请逐张或同时插入。",
	"Step: the machine's cards, at least %d of %d. Insert them one after the other, or all at once.":   "步骤：机器的钥匙卡，至少 %d 张，共 %d 张。请逐张或同时插入。",
	"Step: %d cards get their shares. A card that has a share of this machine may get a new one.":      "步骤：向 %d 张卡写入份额。已有本机份额的卡也可以再用。",
	"Step: each of the %d cards is read once more.":                                                    "步骤：再次读取这 %d 张卡逐一核对。",
	"Card %q is good: %d of %d tested.":                                                                "卡 %q 良好：已检验 %d / %d。",
	"Card %q got share %d of %d, and gave it back unchanged.":                                          "卡 %q 已写入第 %d 份（共 %d 份），并读回核对无误。",
	"Card %q is verified: %d of %d.":                                                                   "卡 %q 已核对：%d / %d。",
	"Are there more cards to show? Type yes, or press Enter to end: ":                                  "还有其他卡吗？输入 yes 继续，回车结束：",
	"Key check value: %s": "密钥校验值：%s",
	"Write it down for the record, then type its six digits: ": "请抄写到记录，然后输入这六位：",
	"The last step cannot be undone. Type the word destroy: ":  "最后一步无法撤销。请输入 destroy：",
	"Moving every record to the new root":                      "正在把所有记录迁移到新的根密钥",
	"The ceremony was aborted, and left nothing on the cards.": "仪式已中止，卡上没有留下任何东西。",

	"Done: %s.":                                         "完成：%s。",
	"any %d of %d cards open the machine":               "任意 %d / %d 张卡打开机器",
	"key check value %s, root generation %d":            "校验值 %s，根密钥第 %d 代",
	"signed by the machine with fingerprint %s":         "签名机器指纹 %s",
	"report: %s.json, to print: %s.html":                "记录：%s.json，打印：%s.html",
	"Still sealed: open it with trikey machine unseal.": "机器仍为封存状态：用 trikey machine unseal 打开。",
	"Rehearsal: cards, chip and machine are simulated in a directory that is removed at the end.": "演练：卡、芯片和机器都是模拟的，结束后全部删除。",
	"Its cards and their PINs:":                     "演练用的卡和 PIN：",
	"The rehearsal is over; nothing of it is left.": "演练结束，没有留下任何东西。",
}
