"""The real client against the development service, in its good and bad days, and against liars."""

import pytest

from bot.devstack.keycrux import KeycruxService
from keycrux_client.fence import Voters
from keycrux_client.protocol import LIFE_S, EscrowPolicy, GetReply, Got, set_params
from keycrux_client.recovery import Backup, CreateFresh, Halt, decide, sum_up
from keycrux_client.shares import DiskKey, Fence, Head, decode_untrusted, make_split
from nips import kinds
from nips.event import sign_event
from nips.keys import SecretKey
from nips.rpc import RpcReply, build_reply, open_request_untrusted
from nips.tee.env import Env
from tests.escrow import texts
from tests.evidence import HARDWARE, NOW, ZERO, Enclave

KEY, HEAD = DiskKey(b"k" * 32), Head(1, 1, "aa")


def sight(replies):
    return sum_up(replies, lambda key: HEAD if key == KEY else None)


@pytest.mark.parametrize("services", [1, 2, 3, 4])
async def test_the_same_code_gets_its_key_back(escrow, services):
    for _ in range(services):
        escrow.add_service()
    code = escrow.code()
    assert CreateFresh() == decide(Backup.ABSENT, sight(await code.get_all()))
    done = await code.store(KEY, HEAD)
    assert done.is_safe
    assert services == len(done.stored)
    assert KEY == decide(Backup.PRESENT, sight(await code.get_all())).key


async def test_other_code_or_another_machine_gets_nothing_without_signatures(escrow):
    escrow.add_service()
    maintainers = [SecretKey.generate(), SecretKey.generate()]
    await escrow.code(maintainers=maintainers).store(KEY, HEAD)
    stranger = [SecretKey.generate()]
    for other in (
        escrow.code("changed", maintainers, signed_by=[]),
        escrow.code("changed", maintainers, signed_by=maintainers[:1]),
        escrow.code("changed", maintainers, signed_by=stranger),
        escrow.code("changed", stranger),
        escrow.code("changed", maintainers, machine="i-2"),
        escrow.code(maintainers=maintainers, machine="i-2"),
    ):
        replies = await other.get_all()
        assert [GetReply(Got.NONE)] == replies
        assert isinstance(decide(Backup.PRESENT, sight(replies)), Halt)
    signed = escrow.code("changed", maintainers)
    assert KEY == decide(Backup.PRESENT, sight(await signed.get_all())).key


async def test_signatures_over_other_code_open_nothing(escrow):
    escrow.add_service()
    maintainers = [SecretKey.generate()]
    first = escrow.code(maintainers=maintainers)
    await first.store(KEY, HEAD)
    thief = escrow.code("changed", maintainers, signed_by=[])
    # The signatures are real and public, but over the first image.
    stolen = thief.client.__class__(
        escrow.lane, thief.attester, escrow.clock, first.client.credentials, thief.client.policy
    )
    assert [GetReply(Got.NONE)] == list(
        (await stolen.get_all((await escrow.find_services()).services)).values()
    )


async def test_debug_and_measured_code_do_not_share(escrow):
    escrow.add_service()
    debug = escrow.code()
    debug.attester.nsm._pcrs.update(dict.fromkeys((0, 1, 2), ZERO))
    policy = EscrowPolicy(debug.client.policy.repo, ())
    open_client = debug.client.__class__(
        escrow.lane, debug.attester, escrow.clock, debug.client.credentials, policy
    )
    (service,) = (await escrow.find_services()).services
    assert await open_client.set(service, texts(KEY, HEAD, 1)[0])
    asked = await open_client._call(
        service, SecretKey.generate(), "has", {"PCR4": debug.pcrs[4].hex()}
    )
    assert {"count": 0, "countDebug": 1} == asked.result
    measured = escrow.code("changed", debug.maintainers)
    assert [GetReply(Got.NONE)] == await measured.get_all()


async def test_a_key_that_another_life_left_is_never_overwritten(escrow):
    escrow.add_service()
    code = escrow.code()
    await code.store(KEY, HEAD)
    other = await code.keeper(DiskKey(b"o" * 32), HEAD)
    done = await other.refresh()
    assert not done.is_safe
    assert (1, ()) == (len(done.conflicts), done.stored)
    assert KEY == decide(Backup.PRESENT, sight(await code.get_all())).key
    ordered = await code.keeper(DiskKey(b"o" * 32), HEAD, forget=True)
    assert (await ordered.refresh()).is_safe
    assert (await ordered.refresh()).is_safe


async def test_an_older_self_does_not_overwrite_a_newer_head(escrow):
    escrow.add_service()
    code = escrow.code()
    await code.store(KEY, Head(7, 7, "cc"))
    done = await code.store(KEY, Head(6, 9, "bb"))
    assert (1, 1, ()) == (len(done.conflicts), len(done.ahead.pubkeys), done.stored)
    assert (await code.store(KEY, Head(8, 8, "dd"))).is_safe


async def test_garbage_that_a_service_holds_is_not_ours_to_overwrite(escrow):
    escrow.add_service()
    code = escrow.code()
    (service,) = (await escrow.find_services()).services
    assert await code.client.set(service, "AGE-SECRET-KEY-OF-AN-OLDER-VERSION")
    assert 1 == len((await code.store(KEY, HEAD)).conflicts)
    assert ["AGE-SECRET-KEY-OF-AN-OLDER-VERSION"] == [r.data for r in await code.get_all()]


def shares(replies):
    """Which part each service holds, those that hold one."""
    values = [decode_untrusted(r.data) for r in replies if r.got is Got.HELD]
    return [(part.set_id, part.index) for value in values for part in value.parts]


async def test_services_come_and_go_and_the_split_stays(escrow):
    names = [escrow.add_service() for _ in range(3)]
    code = escrow.code()
    split = make_split(KEY, 3)
    keeper = await code.keeper(KEY, HEAD, split)
    assert 3 == len((await keeper.refresh()).stored)
    first = shares(await code.get_all())
    lost = escrow.lane.services.pop(names[0])
    assert (await keeper.refresh()).is_safe
    escrow.add_service()
    assert (await keeper.refresh()).is_safe
    escrow.lane.services[names[0]] = lost
    done = await keeper.refresh()
    assert (3, (), 3) == (len(done.stored), done.conflicts, done.members)
    later = shares(await code.get_all())
    assert sorted(first) == sorted(later)


async def test_no_part_is_given_to_a_second_service_while_the_first_may_have_it(escrow):
    """Else there were two majorities with nobody in common, and two states could both be the newest."""
    names = [escrow.add_service() for _ in range(3)]
    code, split = escrow.code(), make_split(KEY, 3)
    keeper = await code.keeper(KEY, HEAD, split)
    await keeper.refresh()
    escrow.lane.services.pop(names[0])
    escrow.lane.announcements.pop(0)
    escrow.add_service()
    # Another life knows who had what from the checkpoint.
    again = await code.keeper(KEY, Head(2, 2, "bb"), split, holders=keeper.holders)
    done = await again.refresh()
    assert (2, 2, True) == (len(done.stored), done.members, done.is_safe)
    long_ago = {who: (index, at - LIFE_S - 1) for who, (index, at) in keeper.holders.items()}
    done = await code.store(KEY, Head(2, 2, "bb"), split, holders=long_ago)
    assert (3, 3) == (len(done.stored), done.members), "by now it has forgotten its part"


async def test_whoever_was_overtaken_between_looking_and_storing_does_not_store(escrow):
    """Compare and set: without it the second write would hide the first."""
    for _ in range(3):
        escrow.add_service()
    code, split = escrow.code(), make_split(KEY, 3)
    await code.store(KEY, HEAD, split)
    late, quick = [
        await code.keeper(KEY, Head(2, 2, name), split, Fence(2, name))
        for name in ("late", "quick")
    ]
    real, overtaken = code.client.get_all, False

    async def get_all(services):
        nonlocal overtaken
        replies = await real(services)
        if not overtaken:
            overtaken = True
            assert (await quick.refresh()).is_safe
        return replies

    object.__setattr__(code.client, "get_all", get_all)
    done = await late.refresh()
    assert (False, 0, 3) == (done.is_safe, len(done.stored), len(done.failed))
    heads = {decode_untrusted(reply.data).head.digest for reply in await code.get_all()}
    assert {"quick"} == heads
    assert 3 == len((await late.refresh()).conflicts), "and finds out why"


async def test_an_anchor_goes_to_those_that_were_found_and_says_who_overtook_us(escrow):
    for _ in range(3):
        escrow.add_service()
    code, split = escrow.code(), make_split(KEY, 3)
    older = await code.keeper(KEY, HEAD, split)
    newer = await code.keeper(KEY, Head(2, 2, "bb"), split, holders=older.holders)
    assert (await older.refresh()).is_safe
    assert (await older.anchor(Head(1, 2, "cc"), older.holders)).is_safe
    assert (await newer.refresh()).is_safe
    done = await older.anchor(Head(1, 99, "dd"), older.holders)
    assert (False, 3) == (done.is_safe, len(done.ahead.pubkeys))


async def test_a_part_that_two_lives_gave_to_two_services_votes_for_neither(escrow):
    """Between two checkpoints nobody knows of it: there would be two majorities with nobody in common."""
    a, b, c = [escrow.add_service() for _ in range(3)]
    code, split = escrow.code(), make_split(KEY, 3)
    older = await code.keeper(KEY, HEAD, split)
    assert (await older.refresh()).is_safe
    d, e = escrow.add_service(), escrow.add_service()
    everybody = dict(escrow.lane.services)

    def only(*names):
        escrow.lane.services = {name: everybody[name] for name in names}

    # The third one is silent for so long that its part is given to somebody else.
    deciders = [Voters.named(2, older.holders)]
    older._allotment._holders[c] = (older.holders[c][0], escrow.clock.now() - LIFE_S)
    sealed = {name: at for name, at in older.holders.items() if name != c}
    only(a, d)
    assert not (await older.refresh()).is_safe
    assert d in older.holders
    assert not (await older.anchor(Head(1, 2, "bb"), sealed)).is_safe
    only(b, e)
    newer = await code.keeper(
        KEY, Head(2, 2, "cc"), split, Fence(2, "newer"), holders=sealed, deciders=deciders
    )
    assert e in newer.holders
    for _ in range(3):
        assert not (await newer.refresh()).is_safe
    only(a, b, d)
    assert (b,) == (await older.refresh()).ahead.pubkeys
    for _ in range(2):
        done = await newer.refresh()
    assert (True, 2) == (done.is_safe, done.members)


async def test_a_larger_split_needs_a_majority_of_the_smaller_one_as_well(escrow):
    """Else those who decided before could let somebody else go on."""
    names = [escrow.add_service() for _ in range(3)]
    code, small = escrow.code(), make_split(KEY, 3)
    older = await code.keeper(KEY, HEAD, small)
    assert (await older.refresh()).is_safe
    names += [escrow.add_service() for _ in range(2)]
    everybody = dict(escrow.lane.services)
    options = {"holders": older.holders, "deciders": [Voters.named(2, older.holders)]}
    newer = await code.keeper(KEY, Head(2, 2, "bb"), make_split(KEY, 5), **options)
    escrow.lane.services = {name: everybody[name] for name in names[2:]}
    for _ in range(3):
        done = await newer.refresh()
        assert not done.is_safe
    escrow.lane.services = everybody
    for _ in range(3):
        done = await newer.refresh()
    assert (True, 5, 3) == (done.is_safe, done.members, done.needed)


async def test_two_services_with_the_same_part_are_told_apart_again(escrow):
    names = [escrow.add_service() for _ in range(3)]
    code, split = escrow.code(), make_split(KEY, 3)
    hidden = escrow.lane.services.pop(names[2])
    await code.store(KEY, HEAD, split)
    others = {name: escrow.lane.services.pop(name) for name in names[:2]}
    escrow.lane.services[names[2]] = hidden
    await code.store(KEY, HEAD, split)
    escrow.lane.services |= others
    assert 2 == len(set(shares(await code.get_all())))
    done = await code.store(KEY, HEAD, split)
    assert (3, True) == (done.members, done.is_safe)


NEW = DiskKey(b"n" * 32)


def losing(escrow, count, *, is_done):
    """From that `set` on nobody answers; whether it is carried out all the same."""
    sets = [0]

    def tamper(target, request, reply):
        asked = open_request_untrusted(escrow.lane.services[target].key, request)
        sets[0] += asked.method == "set"
        return None if sets[0] > count else reply

    if not is_done:
        for book in escrow.books:
            real = book.set

            def set_(*args, real=real):
                return real(*args) if sets[0] < count else "no"

            book.set = set_
    escrow.lane.tamper = tamper
    return sets


@pytest.mark.parametrize("is_done", [True, False], ids=["answers are lost", "nothing comes"])
@pytest.mark.parametrize(
    ("had", "gets", "key"),
    [(2, 3, KEY), (3, 5, KEY), (3, 3, NEW), (5, 5, NEW)],
    ids=["whole copies to shares", "more shares", "another key", "another key, of five"],
)
async def test_at_every_moment_of_a_renewal_the_key_can_be_had_whoever_is_lost(
    escrow, had, gets, key, is_done
):
    for _ in range(had):
        escrow.add_service()
    code, old, new = escrow.code(), make_split(KEY, had), make_split(key, gets)
    everybody = []
    for count in range(40):
        escrow.lane.tamper = None
        for book in escrow.books:
            book._db.execute("DELETE FROM held")
            book.__dict__.pop("set", None)
        escrow.lane.services = dict(everybody or escrow.lane.services)
        keeper = await code.keeper(KEY, HEAD, old)
        assert (await keeper.refresh()).is_safe
        while len(escrow.lane.services) < gets:
            escrow.add_service()
        everybody = dict(escrow.lane.services)
        sets = losing(escrow, count, is_done=is_done)
        done = None
        if (holders := await keeper.prepare(key, new)) is not None:
            done = await keeper.adopt(Head(1, 2, "bb"), holders)
        escrow.lane.tamper = None
        for lost in everybody if had > 2 else [None]:
            escrow.lane.services = {n: s for n, s in everybody.items() if n != lost}
            found = sum_up(await code.get_all(), lambda _: None).candidates
            newest = max(c.newest for c in found if c.newest is not None)
            assert {c.key for c in found if c.newest == newest} <= {KEY, key}
            assert newest == Head(1, 2, "bb") or done is None or not done.is_safe
        if done is not None and sets[0] < count:
            assert done.is_safe
            break
    assert 2 * gets < count < 40
    held = {set_id for set_id, _ in shares(await code.get_all())}
    assert {new.set_id} == held, "the former is worth nothing"


async def test_whole_copies_are_given_up_only_when_all_of_them_are(escrow):
    """Whoever has one could bring back what was before."""
    first = escrow.add_service()
    escrow.add_service()
    code, split = escrow.code(), make_split(KEY, 3)
    keeper = await code.keeper(KEY, HEAD, make_split(KEY, 2))
    assert (await keeper.refresh()).is_safe
    escrow.add_service()
    silent = escrow.lane.services.pop(first)
    assert None is await keeper.prepare(KEY, split)
    escrow.lane.services[first] = silent
    holders = await keeper.prepare(KEY, split)
    assert holders is not None
    escrow.lane.services.pop(first)
    assert not (await keeper.adopt(Head(1, 2, "bb"), holders)).is_safe
    escrow.lane.services[first] = silent
    assert (await keeper.refresh()).is_safe


async def test_what_is_not_prepared_stays_as_it_was(escrow):
    names = [escrow.add_service() for _ in range(3)]
    code, split = escrow.code(), make_split(KEY, 3)
    keeper = await code.keeper(KEY, HEAD, split)
    assert (await keeper.refresh()).is_safe
    escrow.lane.services = {names[0]: escrow.lane.services[names[0]]}
    assert None is await keeper.prepare(NEW, make_split(NEW, 3))
    await keeper.refresh()
    assert {split.set_id} == {set_id for set_id, _ in shares(await code.get_all())}


async def test_too_few_services_are_not_safe_and_the_key_is_not_laid_open_for_them(escrow):
    names = [escrow.add_service() for _ in range(3)]
    code, split = escrow.code(), make_split(KEY, 3)
    await code.store(KEY, HEAD, split)
    for name in names[:2]:
        escrow.lane.services.pop(name)
    done = await code.store(KEY, Head(1, 2, "bb"), split)
    assert (False, 1, 2) == (done.is_safe, done.members, done.needed)
    assert all(KEY.secret.hex() not in reply.data for reply in await code.get_all())


async def test_a_service_that_says_ok_and_keeps_nothing_does_not_count(escrow):
    escrow.add_service()
    code = escrow.code()
    book = escrow.books[0]
    book.set = lambda *_: "ok"
    done = await code.store(KEY, HEAD)
    assert (False, 1) == (done.is_safe, len(done.failed))


async def test_one_service_that_stores_nothing_does_not_stop_us_but_two_old_ones_do(escrow):
    names = [escrow.add_service() for _ in range(3)]
    code, split = escrow.code(), make_split(KEY, 3)

    for book, name in zip(escrow.books, names, strict=True):
        real = book.set

        def set_unless(*args, name=name, real=real):
            return "ok" if name in stuck else real(*args)

        book.set = set_unless
    stuck = [names[0]]
    assert (await code.store(KEY, Head(1, 1, "aa"), split)).is_safe, "it holds nothing"
    stuck = []
    assert (await code.store(KEY, Head(1, 2, "bb"), split)).is_safe
    stuck = names[:1]
    assert (await code.store(KEY, Head(1, 3, "cc"), split)).is_safe, "one old share is no key"
    stuck = names[:2]
    done = await code.store(KEY, Head(1, 4, "dd"), split)
    assert (False, 2) == (done.is_safe, len(done.failed))


async def test_another_one_of_us_beside_us_is_noticed(escrow):
    """Two that were restored from the same backup: the second finds that it is not alone."""
    for _ in range(3):
        escrow.add_service()
    code, split = escrow.code(), make_split(KEY, 3)
    assert (await code.store(KEY, Head(1, 2, "first"), split, Fence(1, "first"))).is_safe
    done = await code.store(KEY, Head(1, 2, "second"), split, Fence(1, "second"))
    assert (False, 3) == (done.is_safe, len(done.conflicts))


async def test_more_services_than_members(escrow):
    for _ in range(18):
        escrow.add_service()
    code = escrow.code()
    done = await code.store(KEY, HEAD)
    assert (15, 15, True) == (len(done.stored), done.members, done.is_safe)


# -- a lying or dead service ---------------------------------------------------------------------------


async def lied_to(escrow, tamper):
    escrow.add_service()
    code = escrow.code()
    await code.store(KEY, HEAD)
    escrow.lane.tamper = tamper
    return await code.get_all()


def forged(escrow, text):
    """A reply of the service's own, with another content."""

    def tamper(target, request, reply):
        service = escrow.lane.services[target]
        rpc_id = "x" if text == "wrong id" else open_id(service, request)
        answer = (
            RpcReply(rpc_id, None, "Not found") if text is None else RpcReply(rpc_id, text, None)
        )
        return build_reply(service.key, request, answer, NOW)

    return tamper


def open_id(service, request):
    return open_request_untrusted(service.key, request).rpc_id


@pytest.mark.parametrize("text", ["", "x" * 1_024, 7, {"a": 1}, ["a"], True, "wrong id"])
async def test_wrong_data_is_silence(escrow, text):
    (reply,) = await lied_to(escrow, forged(escrow, text))
    assert Got.SILENT is reply.got


async def test_an_error_is_silence_unless_it_says_not_found(escrow):
    def says(error):
        def tamper(target, request, reply):
            service = escrow.lane.services[target]
            return build_reply(
                service.key, request, RpcReply(open_id(service, request), None, error), NOW
            )

        return tamper

    (reply,) = await lied_to(escrow, says("internal error"))
    assert Got.SILENT is reply.got
    escrow.lane.tamper = says("Not found")
    assert [GetReply(Got.NONE)] == await escrow.code().get_all()


async def test_no_answer_and_another_ones_answer_are_silence(escrow):
    (reply,) = await lied_to(escrow, lambda target, request, reply: None)
    assert Got.SILENT is reply.got
    impostor = SecretKey.generate()

    def by_impostor(target, request, reply):
        service = escrow.lane.services[target]
        answer = RpcReply(open_id(service, request), "mine", None)
        return build_reply(impostor, request, answer, NOW)

    escrow.lane.tamper = by_impostor
    assert [GetReply(Got.SILENT)] == await escrow.code().get_all()


async def test_an_answer_to_another_request_is_silence(escrow):
    seen = []

    def replay(target, request, reply):
        seen.append(reply)
        return seen[0]

    await lied_to(escrow, replay)
    assert [GetReply(Got.SILENT)] == await escrow.code().get_all()


async def test_every_session_has_a_key_of_its_own_and_nothing_is_set_without_a_policy(escrow):
    escrow.add_service()
    code = escrow.code()
    await code.store(KEY, HEAD)
    await code.get_all()
    keys = [request.pubkey for request in escrow.lane.requests]
    assert len(keys) == len(set(keys)) == 5, "meet, get, set, get to see that it is there, get"
    with pytest.raises(ValueError, match="without a repository"):
        EscrowPolicy("", ())
    with pytest.raises(ValueError, match="1 to 1023"):
        set_params(b"", code.client.credentials, code.client.policy, "x" * 1_024)


# -- which services are believed ------------------------------------------------------------------------


async def test_services_that_are_not_believed(escrow):
    good = escrow.add_service()
    escrow.add_service(repo="https://example.com/fork")
    escrow.add_service(maintainers=[SecretKey.generate()])
    escrow.add_service(maintainers=[])
    unsigned = sign_event(
        SecretKey.generate(), kinds.ANNOUNCEMENT, "", [("r", "https://example.com/keycrux")], NOW
    )
    stolen = sign_event(
        SecretKey.generate(), kinds.ANNOUNCEMENT, "", escrow.lane.announcements[0].tags, NOW + 1
    )
    escrow.lane.announcements += [unsigned, stolen]
    assert [good] == [service.pubkey for service in (await escrow.find_services()).services]
    escrow.clock.advance(4 * 3600)
    assert () == (await escrow.find_services()).services


async def test_debug_services_are_believed_only_when_allowed(escrow):
    from dataclasses import replace

    from keycrux_client.discovery import discover, judge

    escrow.add_service()
    strict = replace(escrow.trust, envs=frozenset({Env.PROD}))
    found = await discover(escrow.lane, ["wss://x"], strict, escrow.verifier, NOW)
    assert () == found.services
    assert "it is debug" in found.refused[0][1]
    real = Enclave(
        env=Env.PROD, repo="https://example.com/keycrux", maintainers=[escrow.maintainer]
    )
    assert judge([real.announcement()], strict, HARDWARE.verifier, NOW).services
    nobody = replace(strict, maintainers=frozenset())
    assert () == judge([real.announcement()], nobody, HARDWARE.verifier, NOW).services


# -- the development service itself -----------------------------------------------------------------------


async def test_the_service_keeps_what_it_holds_through_its_own_restart_and_forgets_in_time(escrow):
    from bot.devstack.keycrux_book import KeycruxBook

    escrow.add_service()
    code = escrow.code()
    await code.store(KEY, HEAD)
    (service,) = escrow.lane.services.values()
    replayed = next(
        r for r in escrow.lane.requests if open_request_untrusted(service.key, r).method == "set"
    )
    escrow.books[0].close()
    again = KeycruxBook(escrow.folder / "0.sqlite")
    escrow.books[0] = again
    escrow.lane.services = {
        service.key.pubkey: KeycruxService(service.key, again, escrow.verifier, escrow.clock)
    }
    assert KEY == decide(Backup.PRESENT, sight(await code.get_all())).key
    escrow.clock.advance(200)
    (service,) = escrow.lane.services.values()
    assert service.answer(replayed) is None, "a request from before its restart"
    now = escrow.clock.now()
    again._db.execute("UPDATE held SET expires_at = ?", (now - 1,))
    assert [GetReply(Got.NONE)] == await code.get_all()


async def test_the_service_answers_each_request_once_and_speaks_upstreams_errors(escrow):
    pubkey = escrow.add_service()
    service = escrow.lane.services[pubkey]
    code = escrow.code()
    await code.get_all()
    assert service.answer(escrow.lane.requests[-1]) is None
    (believed,) = (await escrow.find_services()).services
    for method, params, error in (
        ("set", {}, "COSE_Sign1"),
        ("get", {}, "COSE_Sign1"),
        ("get", {"attestation": "@"}, "Invalid request"),
        ("get", {"attestation": "AAAA"}, "COSE_Sign1"),
        ("nothing", {}, "Invalid method"),
    ):
        reply = await code.client._call(believed, SecretKey.generate(), method, params)
        assert error in reply.error
    assert "pong" == (await code.client._call(believed, SecretKey.generate(), "ping", {})).result
    status = (await code.client._call(believed, SecretKey.generate(), "status", {})).result
    assert {"countPCR4", "count", "countDebug", "startedAt"} == status.keys()


async def test_a_policy_is_mandatory_and_must_be_fulfilled_by_who_sets_it(escrow):
    escrow.add_service()
    unsigned = escrow.code(signed_by=[])
    (service,) = (await escrow.find_services()).services
    assert not await unsigned.client.set(service, "value")
    code = escrow.code()
    key, document = await code.client._session()
    params = set_params(document, code.client.credentials, code.client.policy, "value")
    del params["policy"]
    assert "No policy" == (await code.client._call(service, key, "set", params)).error
    thief = SecretKey.generate()
    params = set_params(document, code.client.credentials, code.client.policy, "value")
    assert "another public key" in (await code.client._call(service, thief, "set", params)).error
